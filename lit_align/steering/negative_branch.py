"""Diffusion-NPO's guidance: away from a policy trained on reversed preferences."""

from lit_align.diffusion.hook import Hook


class NegativeBranch(Hook):
    """Wang et al., ICLR 2025 (arXiv 2505.11245): guidance whose conditional prediction is the reference's and whose
    null prediction is the trained policy's, e_neg(x, null) + w (e_ref(x, c) - e_neg(x, null))."""

    replaces = ("predict",)

    def check(self, policy, sampler):
        if sampler.guidance_scale == 1:
            raise ValueError("NegativeBranch is what guidance leads away from; with guidance_scale 1 it does nothing.")

    def predict(self, policy, state, sampler):
        w = sampler.guidance_scale
        negative = policy.denoise(state.x, state.t, policy.null(len(state.x)))
        with policy.reference():
            positive = policy.denoise(state.x, state.t, state.cond)
        prediction = negative + w * (positive - negative)
        state.x0 = policy.process.to_x0(prediction, state.x, state.t)
        state.eps = policy.process.to_eps(prediction, state.x, state.t)
