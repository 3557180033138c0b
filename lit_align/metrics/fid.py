"""FID: the distance of two Gaussians fitted to features."""

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from lit_align.metrics.features import Features
from lit_align.metrics.inception import Inception
from lit_align.metrics.reference import ReferenceMetric


class FID(ReferenceMetric):
    """Frechet Inception Distance to the reference images (Heusel et al. 2017, arXiv 1706.08500), by torchmetrics.

    Lower is better. It streams: sums of features and of their products. It is biased for few images, and needs more of
    them than features: quote how many with it. With another extractor it is another figure, and says so in its name.

    Args:
        reference: a folder of images.
        features: default: FID's Inception.
        size: side of the references; None: as they are.
    """

    prefix = "fid"
    artefact = Inception.artefact
    blind_to = "the prompts; whether one image is good"

    def __init__(self, reference: str, features: Features | None = None, size: int | None = None):
        super().__init__(reference, features or Inception(), size)
        self.fid = FrechetInceptionDistance(self.features, reset_real_features=False, normalize=True)

    def add(self, images: Tensor, real: bool) -> None:
        self.fid.update(images, real=real)

    def compute(self) -> dict[str, Tensor]:
        return {self.name: self.fid.compute().float()}

    def reset(self) -> None:
        super().reset()
        self.fid.reset()

    def set_dtype(self, dst_type: str | torch.dtype):
        return self  # sums are float64
