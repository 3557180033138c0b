"""The gradient of a reward in x_t, which several methods follow."""

import copy

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, randn_like
from lit_align.rewards.reward import Reward, judge, refuse_masks


def check_gradient(who: str, reward: Reward | None = None) -> None:
    """Raises ValueError if `who` cannot take gradients here: of a reward without one, or under inference mode."""
    if reward is not None and not reward.differentiable:
        raise ValueError(
            f"{who} needs the reward's gradient and {reward.name} has none: choose a differentiable reward, or steer "
            "by FKSteering or BestOfN."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(f"{who} takes gradients, which inference mode forbids: set --trainer.inference_mode false.")


def guidance_size(state: State) -> Tensor:
    """Root mean square of guidance's correction, e_cond - e_null, of each particle: (P,)."""
    gap = state.branches["cond"] - state.branches["null"]
    return gap.square().flatten(1).mean(1).sqrt()


def normalised(gradient: Tensor, size: Tensor) -> Tensor:
    """The gradient (P, ...) of each particle with root mean square `size` (P,); 0 stays 0."""
    rms = gradient.square().flatten(1).mean(1).sqrt()
    return gradient * append_dims(torch.where(rms > 0, size / rms, 0.0), gradient)


class RewardGuidance(Hook):
    """Base of the hooks that follow the gradient in x_t of r(c, x_0-hat(x_t)).

    Args:
        reward: r, differentiable.
    """

    through_denoiser = True  # False: the network's output is a constant, and x_0-hat depends on x_t by formula alone

    def __init__(self, reward: Reward):
        refuse_masks(reward, type(self).__name__)
        self.reward = reward.eval().requires_grad_(False)

    def check(self, policy, sampler: Sampler) -> None:
        check_gradient(type(self).__name__, self.reward)

    def value(self, policy, state: State) -> Tensor:
        """What is climbed (P,), from a state with its prediction."""
        return judge(self.reward, policy, state.x0, state.rows)

    def gradient(self, policy, state: State, sampler: Sampler) -> Tensor:
        """Predicts, as `predict` of the hook inside does, and returns the gradient of `value` in x_t (P, ...). (Where
        training keeps the step's own gradient, the prediction is made twice.)"""
        leaf = copy.copy(state)
        leaf.x, leaf.needs_grad = state.x.detach().requires_grad_(), self.through_denoiser
        with torch.enable_grad():
            super().predict(policy, leaf, sampler)
            (gradient,) = torch.autograd.grad(self.value(policy, leaf).sum(), leaf.x)
        if state.needs_grad:
            super().predict(policy, state, sampler)
        else:
            state.x0, state.eps = leaf.x0.detach(), leaf.eps.detach()
            state.branches = {name: branch.detach() for name, branch in leaf.branches.items()}
        return gradient

    def travel(self, policy, state: State, sampler: Sampler) -> None:
        """Draws x_t anew from a state with its prediction: the step to x_s by this hook and those inside, and noise
        back to t (time travel, or self-recurrence)."""
        x_s = self.propose(policy, state, self.transition(policy, state, sampler))
        state.x = policy.process.renoise(x_s, randn_like(x_s, state.generators), state.s, state.t)
