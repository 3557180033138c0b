"""Skip-layer guidance: away from a prediction for which some blocks are left out."""

from contextlib import contextmanager
from inspect import signature

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims


class SkipLayerGuidance(Hook):
    """The guidance of Stable Diffusion 3.5 medium (github.com/Stability-AI/sd3.5; diffusers' skip_guidance_layers):
    adds s (e(x, c) - e^(x, c)), where e^ leaves out some blocks of the denoiser, to what lies inside. One evaluation more
    in each step i of n with start n < i < stop n, counted from 0.

    Args:
        skip_layers: numbers of the blocks that are left out.
        scale: s.
        start, stop: shares of the steps.
    """

    def __init__(
        self, skip_layers: list[int] | None = None, scale: float = 2.8, start: float = 0.01, stop: float = 0.2
    ):
        self.skip_layers, self.scale = [7, 8, 9] if skip_layers is None else skip_layers, scale
        self.start, self.stop = start, stop

    def check(self, policy, sampler):
        if "skip_layers" not in signature(type(policy.denoiser).forward).parameters:
            raise ValueError(
                f"SkipLayerGuidance: diffusers leaves out no blocks of a {type(policy).__name__}; it is for "
                "StableDiffusion3."
            )
        if policy.compiles:
            raise ValueError("SkipLayerGuidance: a compiled denoiser skips no blocks: set policy.compile to false.")
        count = len(policy.denoiser.transformer_blocks)
        if unknown := [i for i in self.skip_layers if i not in range(count)]:
            raise ValueError(f"SkipLayerGuidance: there is no block {unknown[0]}; the denoiser has 0 to {count - 1}.")
        if not self.skip_layers or not self.evaluations(sampler.steps):
            raise ValueError(
                f"SkipLayerGuidance does nothing: no step i of {sampler.steps} has {self.start} x {sampler.steps} < i "
                f"< {self.stop} x {sampler.steps}, or skip_layers is empty; use more steps or a higher stop."
            )

    def inside(self, i, n: int):
        """Whether it acts in step i of n; i may be a tensor."""
        return (i > self.start * n) & (i < self.stop * n)

    def evaluations(self, steps: int) -> int:
        return sum(self.inside(i, steps) for i in range(steps))

    def nfe(self, inside, steps):
        return inside + self.evaluations(steps)

    @contextmanager
    def skipping(self, denoiser):
        """Inside, the denoiser's forwards leave out the blocks."""
        add = lambda _, args, kwargs: (args, kwargs | {"skip_layers": self.skip_layers})
        handle = denoiser.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def strength(self, policy, t: Tensor, sampler) -> Tensor:
        """s at times t (P,) of the sampler's grid; 0 outside its steps."""
        step = (sampler.timesteps(policy)[:-1].to(t.device) > t[:, None]).sum(1)
        return self.scale * self.inside(step, sampler.steps).float()

    def predict(self, policy, state, sampler):
        super().predict(policy, state, sampler)
        s = append_dims(self.strength(policy, state.t, sampler), state.x)
        if not s.any():
            return
        with torch.set_grad_enabled(state.needs_grad and torch.is_grad_enabled()), self.skipping(policy.denoiser):
            skipped = policy.denoise(state.x, state.t, state.cond)
        gap = lambda read: read(state.branches["cond"], state.x, state.t) - read(skipped, state.x, state.t)
        state.x0 = state.x0 + s * gap(policy.process.to_x0)
        state.eps = state.eps + s * gap(policy.process.to_eps)
