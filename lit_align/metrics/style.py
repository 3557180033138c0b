"""How near the samples' style is to a given one."""

from torch import Tensor

from lit_align.metrics.features import CSD, Features
from lit_align.metrics.reference import ReferenceMetric


class StyleSimilarity(ReferenceMetric):
    """Mean cosine of the style of a sample and of a reference image, over all such pairs (CSD, Somepalli et al. 2024,
    arXiv 2404.01292). It streams: the mean over pairs is the product of the two mean descriptors.

    Args:
        reference: a folder of images in the style.
        features: descriptors of unit length; default: CSD.
        size: side of the references; None: as they are.
    """

    prefix = "style"
    artefact = CSD.artefact
    blind_to = "what the images show; quality"

    def __init__(self, reference: str, features: Features | None = None, size: int | None = None):
        super().__init__(reference, features or CSD(), size)
        for kind in ("fake", "real"):
            self.add_sum(f"{kind}_sum", self.features.width())
            self.add_sum(f"{kind}_n")

    def add(self, images: Tensor, real: bool) -> None:
        kind, x = "real" if real else "fake", self.features(images).double()
        setattr(self, f"{kind}_sum", getattr(self, f"{kind}_sum") + x.sum(0))
        setattr(self, f"{kind}_n", getattr(self, f"{kind}_n") + len(x))

    def compute(self) -> dict[str, Tensor]:
        return {self.name: (self.fake_sum / self.fake_n @ (self.real_sum / self.real_n)).float()}

    def reset(self) -> None:
        real = self.real_sum, self.real_n
        super().reset()
        self.real_sum, self.real_n = real
