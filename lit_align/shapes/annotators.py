"""Simulated annotators of Shapes images, who can be noisy, biased and in disagreement with each other."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lit_align.rewards.reward import Reward
from lit_align.shapes.judge import see
from lit_align.shapes.scenes import Caption, Object, parse, satisfies


def qualities(scene: list[Object], prompt: str) -> dict[str, float]:
    """What an annotator can care about, each in [0, 1]. `correct`: the exact judge's verdict; `partial`: the share of
    objects that match the caption; `large`, `red`: the share of objects that are large or red; `sparse`: 1 over the
    number of objects."""
    n = max(len(scene), 1)
    return {
        "correct": float(satisfies(scene, parse(prompt))),
        "partial": matched(scene, parse(prompt)),
        "large": sum(o.size == "large" for o in scene) / n,
        "red": sum(o.color == "red" for o in scene) / n,
        "sparse": 1 / n,
    }


def matched(scene: list[Object], caption: Caption) -> float:
    """The share of objects that match the caption: the size of the best one-to-one matching between the scene's and the
    caption's objects, over the larger of their numbers."""
    fits = np.array([[spec.fits(o) for o in scene] for spec in caption.objects]).reshape(
        len(caption.objects), len(scene)
    )
    pairs = linear_sum_assignment(fits, maximize=True)
    return float(fits[pairs].sum()) / max(fits.shape)


class Annotator:
    """Bradley-Terry choices over a weighted sum of qualities: P(0 preferred) = sigmoid((u_0 - u_1) / temperature).

    Args:
        weights: quality -> weight, e.g. {"correct": 1, "red": 0.5} for an annotator who prefers red objects.
        temperature: of the choice; 0 always picks the higher utility.
        tie: two utilities that differ by less are a tie (label 0.5).
        seed: of the random choices.
    """

    def __init__(
        self, weights: dict[str, float] | None = None, temperature: float = 0.0, tie: float = 1e-6, seed: int = 0
    ):
        self.weights = weights or {"correct": 1.0}
        self.temperature, self.tie = temperature, tie
        self.generator = torch.Generator().manual_seed(seed)

    def utility(self, found: list[dict[str, float]]) -> Tensor:
        """Utilities u(c, x) (B,) of images from their `qualities`."""
        return torch.tensor([sum(w * q[name] for name, w in self.weights.items()) for q in found])

    def probability(self, u_0: Tensor, u_1: Tensor) -> Tensor:
        """P(image 0 preferred) of each pair; 0.5 in a tie."""
        gap = u_0 - u_1
        p = torch.sigmoid(gap / self.temperature) if self.temperature else (gap > 0).float()
        return torch.where(gap.abs() < self.tie, 0.5, p)

    def prefer(self, u_0: Tensor, u_1: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`label_0` of each pair, as in Pick-a-Pic: 1 if image 0 is preferred, 0 if image 1 is, 0.5 for a tie. The
        choices are drawn by `generator`, or the annotator's own."""
        label = (torch.rand(u_0.shape, generator=generator or self.generator) < self.probability(u_0, u_1)).float()
        return torch.where((u_0 - u_1).abs() < self.tie, 0.5, label)


class ShapesUtility(Reward):
    """An annotator's utility as a black-box reward: the weighted sum of an image's `qualities`.

    Args:
        weights: quality -> weight.
        name: the reward's name in logs.
    """

    differentiable = False
    artefact = "none: reads the image back exactly"
    scale = "weighted sum of qualities, 0 to 1 each"
    blind_to = "qualities without a weight"

    def __init__(self, weights: dict[str, float], name: str = "utility"):
        super().__init__()
        self.annotator, self.name = Annotator(weights), name

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        found = [qualities(scene, prompt) for scene, prompt in zip(see(images), prompts, strict=True)]
        return self.annotator.utility(found).to(images.device)
