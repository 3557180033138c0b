"""Universal guidance: a reward's gradient in the noise estimate, optimisation of x_0-hat, and self-recurrence."""

import torch

from lit_align.diffusion.process import append_dims
from lit_align.rewards.reward import Reward, judge
from lit_align.steering.reward_guidance import RewardGuidance


class UniversalGuidance(RewardGuidance):
    """Bansal et al., CVPR workshops 2023 (arXiv 2302.07121), algorithm 1, with the reward in place of minus the loss.

    Forward guidance (eq. 6): eps <- eps - w sigma_t grad_x_t r(c, x_0-hat(x_t)), where x_0-hat is of the unconditional
    prediction, as released, if the sampler is guided. Backward guidance (eq. 7 to 9): x_0-hat <- x_0-hat + D with D by
    `backward_steps` of Adam on r, and eps to match. Self-recurrence: each step is taken `repeats` times from noise
    added again. At a flow's first step x_t says nothing of x_0, and there is no forward guidance.

    Args:
        reward: r, differentiable.
        weight: w; 0 leaves out forward guidance.
        repeats: k.
        backward_steps: m.
        backward_lr: of Adam, in units of latents.
    """

    def __init__(
        self,
        reward: Reward,
        weight: float = 20.0,
        repeats: int = 1,
        backward_steps: int = 0,
        backward_lr: float = 0.01,
    ):
        super().__init__(reward)
        self.weight, self.repeats = weight, repeats
        self.backward_steps, self.backward_lr = backward_steps, backward_lr

    def nfe(self, inside, steps):
        return inside * self.repeats * (2 if self.weight else 1)

    def before_step(self, policy, state, sampler):
        super().before_step(policy, state, sampler)
        for _ in range(self.repeats - 1):
            sampler.estimate(policy, state, self)
            self.travel(policy, state, sampler)

    def value(self, policy, state):
        null = state.branches.get("null")
        x0 = state.x0 if null is None else policy.process.to_x0(null, state.x, state.t)
        return judge(self.reward, policy, x0, state.rows)

    def predict(self, policy, state, sampler):
        alpha, sigma = (append_dims(c, state.x) for c in (policy.process.alpha(state.t), policy.process.sigma(state.t)))
        if self.weight:
            push = self.weight * sigma * self.gradient(policy, state, sampler)
            push = torch.where(alpha > 0, push, 0.0)
            state.eps = state.eps - push
            state.x0 = state.x0 + sigma / alpha.clamp(min=1e-6) * push  # x_t = alpha x_0 + sigma eps still
        else:
            super().predict(policy, state, sampler)
        if self.backward_steps:
            delta = self.backward(policy, state)
            state.x0, state.eps = state.x0 + delta, state.eps - alpha / sigma * delta

    @torch.enable_grad()
    def backward(self, policy, state) -> torch.Tensor:
        """D (P, ...)."""
        start = state.x0.detach()
        delta = torch.zeros_like(start, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=self.backward_lr)
        for _ in range(self.backward_steps):
            loss = -judge(self.reward, policy, start + delta, state.rows).sum()
            (delta.grad,) = torch.autograd.grad(loss, delta)
            adam.step()
        return delta.detach()
