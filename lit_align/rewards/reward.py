"""The reward r(c, x): higher is better, one float per image."""

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn


class Reward(nn.Module):
    """A reward model or rule.

    Attributes: `name` labels it in logs (`val/reward/<name>`), `differentiable` says whether gradients reach the
    images.
    """

    name: str
    differentiable: bool

    @abstractmethod
    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores images (B, 3, H, W) in [0, 1] against their prompts: (B,) on the images' device."""

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) in [0, 1], for methods that learn a value or the reward itself from
        them; differentiable. By default the image at 16 x 16 pixels."""
        return F.adaptive_avg_pool2d(images.float(), 16).flatten(1)
