"""Diffusion-NPO's guidance: away from a policy trained on reversed preferences."""

import torch

from lit_align.diffusion.hook import Hook
from lit_align.policies.policy import Policy
from lit_align.steering.second_policy import check_alike, frozen


class NegativeBranch(Hook):
    """Wang et al., ICLR 2025 (arXiv 2505.11245): guidance e_neg(x, null) + w (e_pos(x, c) - e_neg(x, null)).

    Without `negative`, the negative policy is the sampled one, and the positive one its reference: so a policy that
    DiffusionNPO trains is sampled. With `negative`, the sampled policy is the positive one.

    Args:
        negative: a policy trained on reversed preferences.
        base: the model that both were trained from. theta_neg is then theta_negative + (1 - beta) (theta_pos -
            theta_base): guidance between policies that lie far apart explodes.
        beta: how much of the positive policy's offset the negative one does without.
    """

    replaces = ("predict",)

    def __init__(self, negative: Policy | None = None, base: Policy | None = None, beta: float = 0.0):
        if base is not None and negative is None:
            raise ValueError("NegativeBranch: base moves the negative policy: name one, negative.")
        self.negative, self.base, self.beta = frozen(negative), frozen(base), beta

    def check(self, policy, sampler):
        if sampler.guidance_scale == 1:
            raise ValueError("NegativeBranch is what guidance leads away from; with guidance_scale 1 it does nothing.")
        if self.negative is None:
            if not policy.has_reference:
                raise ValueError("NegativeBranch: this policy has no reference: name a negative policy, negative.")
            return
        check_alike("NegativeBranch", policy, self.negative)
        if self.base is not None:
            self.move(policy)

    @torch.no_grad()
    def move(self, policy) -> None:
        """Adds (1 - beta) (theta_pos - theta_base) to the negative policy, once."""
        positive, base = policy.denoiser.state_dict(), self.base.denoiser.state_dict()
        for name, p in self.negative.denoiser.state_dict().items():
            if name not in positive or name not in base or positive[name].shape != p.shape:
                raise ValueError(f"NegativeBranch: the three policies differ in {name}: merge LoRAs into the model.")
            p += (1 - self.beta) * (positive[name] - base[name].to(positive[name])).to(p)
        self.base = None

    def predict(self, policy, state, sampler):
        null = policy.null_of(state.cond) if state.null is None else state.null
        negative = (self.negative or policy).denoise(state.x, state.t, null)
        if self.negative is None:
            with policy.reference():
                positive = policy.denoise(state.x, state.t, state.cond)
        else:
            positive = policy.denoise(state.x, state.t, state.cond)
        state.branches = {"null": negative, "cond": positive}
        state.read(policy.process, negative + sampler.guidance_scale * (positive - negative))
