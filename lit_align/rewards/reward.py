"""The reward r(c, x): higher is better, one float per image."""

from abc import abstractmethod

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
