"""Maximum mean discrepancies of features: KID and CMMD."""

import torch
from torch import Tensor

from lit_align.metrics.features import CLIPFeatures, Features
from lit_align.metrics.inception import Inception
from lit_align.metrics.metric import cat
from lit_align.metrics.reference import ReferenceMetric

ROWS = 1024  # of a kernel matrix at once


class BufferedReferenceMetric(ReferenceMetric):
    """Base of the metrics that look at all pairs of images, and so keep the features of all of them."""

    def __init__(self, reference: str, features: Features, size: int | None = None):
        super().__init__(reference, features, size)
        width = features.width()
        self.add_rows("fake", width, dtype=torch.float32)
        self.add_rows("real", width, dtype=torch.float32)

    def add(self, images: Tensor, real: bool) -> None:
        (self.real if real else self.fake).append(self.features(images))

    def reset(self) -> None:
        kept = list(self.real)
        super().reset()
        self.real = kept


class KID(BufferedReferenceMetric):
    """Kernel Inception Distance to the reference images (Binkowski et al. 2018, arXiv 1801.01401): the unbiased squared
    MMD with the kernel (x.y / D + 1)^3, over all images, in place of the usual mean over random subsets, which it is
    the expectation of.

    Lower is better, about 0 for two samples of one distribution; it can be negative.

    Args:
        reference: a folder of images.
        features: default: FID's Inception.
        size: side of the references; None: as they are.
    """

    prefix = "kid"
    artefact = Inception.artefact
    blind_to = "the prompts; whether one image is good"

    def __init__(self, reference: str, features: Features | None = None, size: int | None = None):
        super().__init__(reference, features or Inception(), size)

    def compute(self) -> dict[str, Tensor]:
        x, y = cat(self.real).double(), cat(self.fake).double()
        if min(len(x), len(y)) < 2:
            raise ValueError(f"{self.name} needs two images of each kind; there are {len(x)} and {len(y)}.")
        total = lambda a, b: sum(((part @ b.T / b.shape[1] + 1) ** 3).sum() for part in a.split(ROWS))
        within = lambda a: (total(a, a) - ((a.square().sum(1) / a.shape[1] + 1) ** 3).sum()) / (len(a) * (len(a) - 1))
        return {self.name: (within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))).float()}


class CMMD(BufferedReferenceMetric):
    """CLIP maximum mean discrepancy to the reference images (Jayasumana et al. 2024, arXiv 2401.09603): 1000 times the
    biased squared MMD of CLIP's unit features with a Gaussian kernel of width 10.

    Lower is better; the same images give 0.

    Args:
        reference: a folder of images.
        features: default: CLIP ViT-L/14-336, as released.
        size: side of the references; None: as they are.
        sigma: of the kernel.
    """

    prefix = "cmmd"
    artefact = CLIPFeatures.artefact
    blind_to = "the prompts; whether one image is good"

    def __init__(self, reference: str, features: Features | None = None, size: int | None = None, sigma: float = 10.0):
        super().__init__(reference, features or CLIPFeatures(), size)
        self.sigma = sigma

    def compute(self) -> dict[str, Tensor]:
        x, y = cat(self.real).double(), cat(self.fake).double()
        distance = lambda a, b: torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = lambda a, b: torch.exp(-(distance(a, b) ** 2) / (2 * self.sigma**2))
        mean = lambda a, b: sum(kernel(part, b).sum() for part in a.split(ROWS)) / (len(a) * len(b))
        return {self.name: (1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))).float()}
