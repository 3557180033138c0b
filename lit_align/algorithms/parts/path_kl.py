"""How far a sampled path's law lies from the reference's."""

import torch
from torch.utils.checkpoint import checkpoint

from lit_align.diffusion.sampler import Hook, Sampler
from lit_align.diffusion.transition import Gaussian, Reduction


class PathKL(Hook):
    """Adds up KL(p_theta(x_s | x_t, c) || p_ref(x_s | x_t, c)) over the steps of a rollout: `kl` (P,), an estimate of
    the KL of the two laws of paths, with gradient through theta and through x_t into both networks. As the standard
    deviations agree, a step's is |mu_theta - mu_ref|^2 / (2 sigma^2).

    The reference is recomputed in backward, as the policy is. A step whose prediction keeps no gradient is a constant.
    A step without noise is left out; ValueError where no step has noise.

    Args:
        sampler: whose rollout it is.
        reduction: over a sample's own axes; "sum" is the true KL, in nats.
    """

    def __init__(self, sampler: Sampler, reduction: Reduction = "sum"):
        self.sampler, self.reduction = sampler, reduction

    def on_init(self, policy, state):
        self.kl, self.noisy = torch.zeros(len(state.x), device=state.x.device), False

    def propose(self, policy, state, gaussian):
        if (gaussian.std > 0).all():
            at = (policy, state.x, state.t.expand(len(state.x)), state.s.expand(len(state.x)), state.cond)
            with torch.set_grad_enabled(state.keep):
                mean, std = checkpoint(self.reference, *at, use_reentrant=False)
            now = gaussian if state.keep else Gaussian(gaussian.mean.detach(), gaussian.std)
            self.kl, self.noisy = self.kl + now.kl(Gaussian(mean, std), self.reduction), True
        return super().propose(policy, state, gaussian)

    def reference(self, policy, x_t, t, s, cond) -> tuple:
        """Mean and standard deviation of the reference's step."""
        with policy.reference():
            return tuple(self.sampler.gaussian(policy, x_t, t, s, cond)[0])

    def on_end(self, policy, state):
        if not self.noisy:
            raise ValueError("the rollout has no noise, and its path no KL: give it a transition such as DDIM(eta=1).")
