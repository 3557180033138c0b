"""AutoGuidance: away from a weaker version of the model."""

import torch

from lit_align.diffusion.hook import Hook
from lit_align.policies.policy import Policy
from lit_align.steering.second_policy import check_alike, frozen


class AutoGuidance(Hook):
    """Karras et al., NeurIPS 2024 (arXiv 2406.02507), eq. 4: D_weak + w (D - D_weak), both denoisers with the same
    prompt. D is what lies inside: with the sampler's guidance_scale 1 the paper's, else guided already.

    Args:
        weak: a smaller or less trained model of the same latents; None: the policy's reference.
        weight: w; 1 changes nothing.
    """

    def __init__(self, weak: Policy | None = None, weight: float = 2.0):
        self.weak, self.weight = frozen(weak), weight

    def check(self, policy, sampler):
        if self.weak is not None:
            check_alike("AutoGuidance", policy, self.weak)
        elif not policy.has_reference:
            raise ValueError("AutoGuidance: this policy has no reference to lead away from: name a weaker model, weak.")

    def nfe(self, inside, steps):
        return inside + steps

    def predict(self, policy, state, sampler):
        super().predict(policy, state, sampler)
        with torch.set_grad_enabled(state.needs_grad and torch.is_grad_enabled()):
            if self.weak is None:
                weak = policy
                with policy.reference():
                    prediction = policy.denoise(state.x, state.t, state.cond)
            else:
                weak, prediction = self.weak, self.weak.denoise(state.x, state.t, state.cond)
        x0, eps = weak.process.to_x0(prediction, state.x, state.t), weak.process.to_eps(prediction, state.x, state.t)
        state.x0, state.eps = torch.lerp(x0, state.x0, self.weight), torch.lerp(eps, state.eps, self.weight)
