"""The fractal dimension of images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.metrics.benchmark import Benchmark

IDEAL = 1.35  # between 1.3 and 1.5, which people like


class FractalDimension(Benchmark):
    """Box-counting dimension of an image's dark pixels, one of HEIM's aesthetics (Lee et al. 2023, arXiv 2311.04287):
    minus the slope of log(boxes that are neither empty nor full) over log(side), for sides of powers of two.

    `fractal/loss` is |dimension - 1.35|: people like about 1.3 to 1.5. An image without an edge of dark and light has
    none and is left out of both; `fractal/measured` is the share of the others.

    Args:
        threshold: a pixel is dark below this grey level.
    """

    name, blind_to = "fractal", "the prompts; colours; anything but dark shapes"

    def __init__(self, threshold: float = 0.2):
        super().__init__()
        self.threshold = threshold

    def judge(self, images: Tensor, prompts: list[str]) -> list[dict]:
        grey = images[:, 0] * 0.299 + images[:, 1] * 0.587 + images[:, 2] * 0.114
        found = [box_dimension(((image * 255).round() / 255) < self.threshold) for image in grey]
        with_loss = lambda d: (
            [("", d), ("loss", abs(d - IDEAL)), ("measured", 1.0)] if d is not None else [("measured", 0.0)]
        )
        return [{"scores": with_loss(d), "fractal": d} for d in found]


def box_dimension(dark: Tensor) -> float | None:
    """Of a mask (H, W); None where fewer than two sides have a box on an edge."""
    points = []
    for k in range(int(math.log2(min(dark.shape))), 1, -1):
        side = 2**k
        pad = (0, -dark.shape[1] % side, 0, -dark.shape[0] % side)
        filled = F.avg_pool2d(F.pad(dark[None, None].double(), pad), side)[0, 0] * side * side
        boxes = int(((filled > 0.5) & (filled < side * side - 0.5)).sum())
        if boxes:
            points.append((math.log(side), math.log(boxes)))
    if len(points) < 2:
        return None
    x, y = torch.tensor(points, dtype=torch.float64).T
    x = x - x.mean()
    return -((x * (y - y.mean())).sum() / x.square().sum()).item()
