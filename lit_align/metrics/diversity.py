"""How different the samples are, within a prompt and between prompts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.metrics.features import CLIPFeatures, Features
from lit_align.metrics.metric import ImageMetric, cat, ids_of


class PairwiseDistance(ImageMetric):
    """Mean distance of two samples' features: of one prompt (`within`, a mean over prompts with two or more samples;
    absent without one) and of all (`all`). A collapse shows within a prompt first.

    `l2` is DDPO's (Black et al. 2023, arXiv 2305.13301) over all pairs in place of random ones, if the features are
    CLIP's without unit length; `cosine` is 1 - cosine. It keeps the features, which the first needs.

    Args:
        features: default: CLIP ViT-L/14-336.
        distance: cosine or l2.
    """

    artefact = CLIPFeatures.artefact
    blind_to = "whether the images are good, or show the prompt"

    def __init__(self, features: Features | None = None, distance: str = "cosine"):
        super().__init__()
        if distance not in ("cosine", "l2"):
            raise ValueError(f"distance is {distance}: give cosine or l2.")
        self.features, self.distance = features or CLIPFeatures(), distance
        self.name = f"distance_{self.features.name}"
        self.add_rows("ids", dtype=torch.int64)
        self.add_rows("seen", self.features.width(), dtype=torch.float32)

    def update(self, images: Tensor, prompts: list[str]) -> None:
        self.ids.append(ids_of(prompts, images.device))
        self.seen.append(self.features(images))

    def mean(self, x: Tensor) -> Tensor:
        """Over all pairs of features (N, D), N > 1."""
        if self.distance == "l2":
            return sum(torch.cdist(part, x).sum() for part in x.split(1024)) / (len(x) * (len(x) - 1))
        x = F.normalize(x, dim=1)
        return 1 - (x.sum(0).square().sum() - x.square().sum()) / (len(x) * (len(x) - 1))

    def compute(self) -> dict[str, Tensor]:
        ids, x = cat(self.ids), cat(self.seen).double()
        if len(x) < 2:
            raise ValueError(f"{self.name} needs two images.")
        groups = [x[ids == one] for one in ids.unique()]
        within = [self.mean(group) for group in groups if len(group) > 1]
        found = {f"{self.name}/all": self.mean(x).float()}
        return found | ({f"{self.name}/within": torch.stack(within).mean().float()} if within else {})


class VendiScore(ImageMetric):
    """Vendi score (Friedman and Dieng 2022, arXiv 2210.02410): exp of the entropy of the eigenvalues of the cosine
    kernel over n, the effective number of different images: 1 of n copies, n of n orthogonal features.

    It streams: the eigenvalues are those of the (D, D) matrix of second moments of the unit features.

    Args:
        features: default: CLIP ViT-L/14-336.
    """

    artefact = CLIPFeatures.artefact
    blind_to = "whether the images are good, or show the prompt"

    def __init__(self, features: Features | None = None):
        super().__init__()
        self.features = features or CLIPFeatures()
        self.name = f"vendi_{self.features.name}"
        width = self.features.width()
        self.add_sum("moment", width, width)
        self.add_sum("n")

    def update(self, images: Tensor, prompts: list[str]) -> None:
        x = F.normalize(self.features(images).double(), dim=1)
        self.moment, self.n = self.moment + x.T @ x, self.n + len(x)

    def compute(self) -> dict[str, Tensor]:
        if not self.n:
            raise ValueError(f"{self.name} needs an image.")
        eigenvalues = torch.linalg.eigvalsh(self.moment / self.n).clamp(min=0)
        return {self.name: torch.special.entr(eigenvalues).sum().exp().float()}
