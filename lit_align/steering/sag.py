"""SAG: away from a prediction on an image that is blurred where the model attends."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.policies.attention import matches, refuse
from lit_align.steering.pag import check_layers


def blurred(x: Tensor, sigma: float, size: int = 9) -> Tensor:
    """Images (B, C, h, w) under a Gaussian of size x size pixels, mirrored at the edges; smaller images under a smaller
    one."""
    half = min(size // 2, min(x.shape[-2:]) - 1)
    line = torch.exp(-torch.arange(-half, half + 1, device=x.device).square() / (2 * sigma**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (half,) * 4, mode="reflect"), kernel, groups=x.shape[1])


class SAG(Hook):
    """Self-attention guidance (Hong et al., ICCV 2023, arXiv 2210.00939), algorithm 2: adds s (e - e(x~)) to what lies
    inside, for e the unconditional prediction (the conditional one, where the sampler is not guided). x~ is its
    x_0-hat, blurred where a layer's self-attention goes on average, with the same noise again. One evaluation more a
    step.

    Args:
        scale: s.
        sigma: of the blur, latents.
        threshold: cells that are attended to more than this many times the mean are blurred.
        layer: part of the name of the layers whose maps are averaged: `mid`, in a transformer `blocks.13`.
    """

    def __init__(self, scale: float = 0.75, sigma: float = 1.0, threshold: float = 1.0, layer: str = "mid"):
        self.scale, self.sigma, self.threshold, self.layer = scale, sigma, threshold, layer

    def check(self, policy, sampler):
        refuse(policy, "SAG")
        check_layers("SAG", policy, [self.layer])

    def nfe(self, inside, steps):
        return inside + steps

    def record(self, call):
        """Mean attention to each cell (B, h, w): its sum over queries."""
        if call.kind != "cross" and matches(call.name, [self.layer]):
            return call.patches().mean(1).sum(1).unflatten(1, call.grid)

    def predict(self, policy, state, sampler):
        with policy.attention(record=self.record) as maps:
            super().predict(policy, state, sampler)
        if not self.scale:
            return
        n, process = len(state.x), policy.process
        cond = state.cond
        if "null" in state.branches:
            cond = policy.null_of(state.cond) if state.null is None else state.null
        prediction = state.branches.get("null", state.branches["cond"])
        attended = torch.stack(maps).mean(0)[:n]  # with guidance, the null samples come first
        mask = F.interpolate((attended > self.threshold).float()[:, None], state.x.shape[-2:])
        x0, eps = process.to_x0(prediction, state.x, state.t), process.to_eps(prediction, state.x, state.t)
        degraded = process.add_noise(mask * blurred(x0, self.sigma) + (1 - mask) * x0, eps, state.t)
        with torch.set_grad_enabled(state.needs_grad and torch.is_grad_enabled()):
            worse = policy.denoise(degraded, state.t, cond)
        state.x0 = state.x0 + self.scale * (x0 - process.to_x0(worse, state.x, state.t))
        state.eps = state.eps + self.scale * (eps - process.to_eps(worse, state.x, state.t))
