"""CFG++: guidance as interpolation, with the unconditional noise."""

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.transition import DDIM


class CFGPlusPlus(Hook):
    """Chung et al., ICLR 2025 (arXiv 2406.08070), algorithm 2: x_0-hat is that of e_null + lambda (e_c - e_null), and
    the noise added again is e_null.

    lambda is the sampler's `guidance_scale`, in [0, 1]: 0.6 stands for a usual scale of 7.5; 1 is for models whose
    guidance is distilled.
    """

    splits = True

    def check(self, policy, sampler):
        if not 0 <= sampler.guidance_scale <= 1:
            raise ValueError(
                "CFGPlusPlus takes guidance_scale as lambda, a number in [0, 1]; it is "
                f"{sampler.guidance_scale}: 0.6 stands for a usual scale of 7.5."
            )
        if not isinstance(sampler.transition, DDIM):
            name = type(sampler.transition).__name__
            raise ValueError(f"CFGPlusPlus needs a step that adds x_0 and noise, which {name} does not: use DDIM.")

    def predict(self, policy, state, sampler):
        super().predict(policy, state, sampler)
        if "null" not in state.branches:  # guidance_scale is 1
            null = policy.null_of(state.cond) if state.null is None else state.null
            state.branches["null"] = policy.denoise(state.x, state.t, null)
        state.eps = policy.process.to_eps(state.branches["null"], state.x, state.t)
