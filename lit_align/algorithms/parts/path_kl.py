"""KL divergence of the policy's sampled path from the reference's."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import Gaussian, Reduction


class PathKL(Hook):
    """Adds up KL(p_theta(x_s | x_t, c) || p_ref(x_s | x_t, c)) over the steps of a rollout: `kl(state)` (P,) estimates
    the KL between the two distributions of paths, with gradient through theta, and through x_t into both networks. Both
    have the same standard deviation, so a step's KL is |mu_theta - mu_ref|^2 / (2 sigma^2).

    The reference is recomputed in backward, like the policy. A step without gradient adds a constant; a deterministic
    step adds nothing.

    Args:
        sampler: of the rollout.
        reduction: over a sample's own axes; "sum" is the true KL, in nats.
    """

    def __init__(self, sampler: Sampler, reduction: Reduction = "sum"):
        self.sampler, self.reduction = sampler, reduction

    def check(self, policy, sampler):
        if not (sampler.step_std(policy) > 0).any():
            raise ValueError("the rollout has no noise and no path KL: give it a transition such as DDIM(eta=1).")

    def on_init(self, policy, state):
        state.extras[self] = {"kl": torch.zeros(len(state.x), device=state.x.device)}
        super().on_init(policy, state)

    def propose(self, policy, state, gaussian):
        if (gaussian.std > 0).all():
            inputs = (policy, state.x, state.t, state.s, state.cond)
            with torch.set_grad_enabled(state.needs_grad):
                mean, std = checkpoint(self.reference, *inputs, use_reentrant=False)
            current = gaussian if state.needs_grad else Gaussian(gaussian.mean.detach(), gaussian.std)
            extras = state.extras[self]
            extras["kl"] = extras["kl"] + current.kl(Gaussian(mean, std), self.reduction)
        return super().propose(policy, state, gaussian)

    def reference(self, policy, x_t, t, s, cond) -> tuple:
        """Mean and standard deviation of the reference's step."""
        with policy.reference():
            return tuple(self.sampler.gaussian(policy, x_t, t, s, cond)[0])

    def kl(self, state: State) -> Tensor:
        """(P,) of a finished run."""
        return state.extras[self]["kl"]
