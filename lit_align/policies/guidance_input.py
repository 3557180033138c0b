"""The guidance scale as an input of a UNet that was distilled with it (LCM, arXiv 2310.04378)."""

import math

import torch
from torch import Tensor, nn


def resolve(unet: nn.Module, scale: float | None) -> float | None:
    """The scale that a UNet is given: 8 where it takes one and none is named; None where it takes none. ValueError if
    one is named for a UNet that takes none."""
    if unet.config.get("time_cond_proj_dim"):
        return 8.0 if scale is None else scale
    if scale is not None:
        raise ValueError(
            f"distilled_guidance: {scale} is for a UNet that takes its guidance scale as an input "
            "(time_cond_proj_dim), and this one does not: set the sampler's guidance_scale."
        )
    return None


def embedding(unet: nn.Module, scale: float | None, x_t: Tensor) -> Tensor | None:
    """The embedding (B, time_cond_proj_dim) of the scale: sines, then cosines, of 1000 (scale - 1) at frequencies from
    1 down to 1/10000; None without a scale."""
    if scale is None:
        return None
    half = unet.config.time_cond_proj_dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
    angles = 1000 * (scale - 1) * frequencies
    return torch.cat([angles.sin(), angles.cos()]).to(x_t).expand(len(x_t), -1)
