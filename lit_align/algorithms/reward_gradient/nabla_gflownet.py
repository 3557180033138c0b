"""Nabla-GFlowNet: each step's score, relative to the reference's, is the reward's gradient at the next latent."""

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import Trajectory, select_rows
from lit_align.diffusion.transition import DDIM
from lit_align.ranges import NOT_NEGATIVE, POSITIVE
from lit_align.rewards.reward import Reward


class NablaGFlowNet(PolicyGradient):
    """Liu et al. 2024, arXiv 2412.07775: the residual, forward-looking gradient-informed detailed balance,

        mean |grad log p_theta / p_ref (x_s | x_t) - scale alpha_s^2 grad r(x_0-hat(x_s))|^2,    grad in x_s,

    x_0-hat the policy's estimate, without gradient in theta; + proximal mean |(mu_theta - mu_old) / std|^2, which keeps
    an update near the rollout's policy. Samples then follow p_ref exp(scale r), where the forward-looking estimate is
    exact. (The paper adds a learnt correction of the estimate, and the balance's gradient in x_t; this is the released
    code's option no_flow, its proximal term in the network's prediction.)

    Args:
        reward: differentiable.
        rollout: a noisy sampler (default: the paper's 50 DDIM steps with eta 1, guidance 5).
        scale: inverse temperature, in 1/reward.
        proximal: of the second term.
        fraction: of the noisy steps, drawn for each optimizer step, that is trained (released: 0.1).
    """

    uses_reference, uses_advantage = True, False
    ranges = {"scale": POSITIVE, "proximal": NOT_NEGATIVE}

    def __init__(
        self,
        reward: Reward,
        rollout: Sampler | None = None,
        scale: float = 1000.0,
        proximal: float = 1.0,
        fraction: float = 1.0,
        **kwargs,
    ):
        super().__init__(reward=reward, rollout=rollout or Sampler(50, 5.0, DDIM(eta=1.0)), **kwargs)
        if not reward.differentiable:
            raise ValueError(
                f"{type(self).__name__} needs the reward's gradient and {reward.name} has none: "
                "choose a differentiable reward, or a method of the policy_gradient family."
            )
        self.scale, self.proximal, self.fraction = scale, proximal, fraction

    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        self._rows = repeat_rows(batch, self.samples_per_prompt)
        return super().collect(batch)

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return reward

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        steps = super().trained_steps(trajectory)
        return steps[torch.randperm(len(steps))[: max(1, round(self.fraction * len(steps)))]]

    def reward_score(self, step: StepBatch) -> Tensor:
        """scale alpha_s^2 grad r(x_0-hat(x_s)) in x_s, (M, ...)."""
        with torch.enable_grad():
            x_s = step.x_s.detach().requires_grad_()
            x_0, _ = self.rollout.predict(self.policy, x_s, step.s, step.cond)
            reward = self.judge(self.reward, x_0, select_rows(self._rows, step.rows.tolist()))
            (gradient,) = torch.autograd.grad(reward.sum(), x_s)
        alpha, _ = self.policy.process.coefficients(step.s, x_s)
        return self.scale * alpha.square() * gradient

    def loss(self, step: StepBatch) -> Tensor:
        mean, std = step.gaussian
        loss = self.policy.error((mean - step.reference.mean) / std.square(), self.reward_score(step))
        self.log_mean("train/balance", loss.detach().mean(), len(loss))
        return loss + self.proximal * self.policy.error(mean / std, step.old_mean / std)
