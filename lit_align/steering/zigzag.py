"""Z-sampling: each step is taken, inverted under weaker guidance, and taken again."""

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.inversion import direction, invert


class ZSampling(Hook):
    """Bai et al., ICLR 2025 (arXiv 2412.10891), algorithm 1: x_t -> x_s under the sampler's guidance, back to x_t under
    a weaker one, and the step again from there. The gap between the two guidance scales draws x_t towards the prompt.

    A step takes 1 + 2 `repeats` guided evaluations, so that 50 steps take 148; the way back is unconditional by
    default, and then half as dear.

    Args:
        inversion_scale: guidance on the way back.
        end: the fraction of the steps that zigzag, the first ones; never the last step.
        repeats: times that a step goes back.
        legacy_offset: take the way back with the next step's coefficients (t' - delta -> t'), as the release does with
            diffusers 0.22 and later.
    """

    def __init__(self, inversion_scale: float = 0.0, end: float = 1.0, repeats: int = 1, legacy_offset: bool = False):
        self.inversion_scale, self.end, self.repeats = inversion_scale, end, repeats
        self.legacy_offset = legacy_offset

    def check(self, policy, sampler):
        if sampler.step_std(policy).any():
            raise ValueError("ZSampling inverts steps, and this sampler's have noise: set DDIM's eta to 0.")

    def nfe(self, inside, steps):
        back = 2 if self.inversion_scale not in (0, 1) else 1
        return inside + self.repeats * min(self.end * steps, steps - 1) * (inside / steps + back)

    def before_step(self, policy, state, sampler):
        super().before_step(policy, state, sampler)
        if state.i >= min(round(self.end * state.steps), state.steps - 1):
            return
        t, s = state.t, state.s
        if self.legacy_offset:
            t, s = s, sampler.timesteps(policy)[state.i + 2].to(s).expand_as(s)
        for _ in range(self.repeats):
            sampler.estimate(policy, state, self)
            x_s = self.transition(policy, state, sampler).mean  # zig
            if self.inversion_scale:
                prediction = policy.denoise(x_s, state.t, state.cond, self.inversion_scale)
            else:
                prediction = policy.denoise(
                    x_s, state.t, policy.null_of(state.cond) if state.null is None else state.null
                )
            state.x = invert(policy.process, x_s, direction(policy.process, prediction, x_s, state.t), t, s)  # zag
