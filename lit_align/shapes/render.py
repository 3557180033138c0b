"""Renders scenes as anti-aliased images, vectorised over the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.shapes.scenes import COLORS, SHAPES, SIZE, Object

BACKGROUND = 0.1  # the same in all three channels: dark, so that a blurred edge keeps its hue


def coverage(shape: Tensor, x: Tensor, y: Tensor, r: Tensor, px: Tensor, py: Tensor) -> Tensor:
    """The share of each pixel that a shape covers, in [0, 1].

    Args: shape index into SHAPES, centre x, y and half-side r, each (N, 1, 1); pixel centres px, py (N or 1, H, W).
    The edge is one pixel wide: 0.5 minus the signed distance, clamped.
    """
    u, v = px - x, py - y
    arm = r / 3
    circle = (u * u + v * v).sqrt() - r
    square = torch.maximum(u.abs(), v.abs()) - r
    slope = 5**-0.5  # the triangle fills its box: apex (0, -r), base from (-r, r) to (r, r)
    triangle = torch.maximum(v - r, slope * (2 * u.abs() - v - r))
    cross = torch.minimum(torch.maximum(u.abs() - arm, v.abs() - r), torch.maximum(u.abs() - r, v.abs() - arm))
    distance = torch.stack([circle, square, triangle, cross], dim=1)  # (N, 4, H, W)
    index = shape.view(-1, 1, 1, 1).expand(-1, 1, *distance.shape[2:])
    return (0.5 - distance.gather(1, index).squeeze(1)).clamp(0, 1)


def render(scenes: list[list[Object]]) -> Tensor:
    """Draws scenes as images (B, 3, 64, 64) in [0, 1]."""
    image = torch.full((len(scenes), 3, SIZE, SIZE), BACKGROUND)
    py, px = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    for layer in range(max(map(len, scenes), default=0)):
        rows = [b for b, scene in enumerate(scenes) if len(scene) > layer]
        objects = [scenes[b][layer] for b in rows]
        x, y, r = (torch.tensor([o[i] for o in objects]).view(-1, 1, 1) for i in (2, 3, 4))
        shape = torch.tensor([SHAPES.index(o.shape) for o in objects])
        color = torch.tensor([COLORS[o.color] for o in objects]).view(-1, 3, 1, 1)
        cover = coverage(shape, x, y, r, px[None], py[None])[:, None]
        image[rows] = image[rows] * (1 - cover) + color * cover
    return image


def resize(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at size x size pixels; unchanged if they have this size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
