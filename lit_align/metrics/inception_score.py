"""Inception Score."""

import zlib

import torch
from torch import Tensor

from lit_align.metrics.features import Features
from lit_align.metrics.inception import Inception
from lit_align.metrics.metric import ImageMetric


class InceptionScore(ImageMetric):
    """exp(E KL(p(y|x) || p(y))) of a classifier's labels y (Salimans et al. 2016, arXiv 1606.03498), mean and standard
    deviation over splits.

    Higher is better. It streams. An image's pixels say which split it is in, whatever process sees it, so splits are
    not exactly of one size; the released code cuts the images in their order.

    Args:
        features: a classifier; default: FID's Inception.
        splits: 10 as published; of few images take 1.
    """

    artefact = Inception.artefact
    blind_to = "the prompts; variety within a class; whatever is none of ImageNet's classes"

    def __init__(self, features: Features | None = None, splits: int = 10):
        super().__init__()
        self.features, self.splits = features or Inception(), splits
        self.name = f"is_{self.features.name}"
        self.add_sum("p", splits, self.features.classes(torch.zeros(1, 3, 32, 32)).shape[1])
        self.add_sum("negative_entropy", splits)
        self.add_sum("n", splits)

    @torch.no_grad()
    def update(self, images: Tensor, prompts: list[str]) -> None:
        log_p = self.features.classes(images).double().log_softmax(1)
        pixels = (images * 255).round().byte().cpu()
        split = torch.tensor([zlib.crc32(x.numpy().tobytes()) % self.splits for x in pixels], device=log_p.device)
        self.p = self.p.index_add(0, split, log_p.exp())
        self.negative_entropy = self.negative_entropy.index_add(0, split, (log_p.exp() * log_p).sum(1))
        self.n = self.n.index_add(0, split, torch.ones_like(log_p[:, 0]))

    def compute(self) -> dict[str, Tensor]:
        if not (self.n > 0).all():
            raise ValueError(f"a split of {self.name} has no image: there are {int(self.n.sum())}; lower `splits`.")
        marginal = self.p / self.n[:, None]
        entropy = torch.special.entr(marginal).sum(1)
        scores = (self.negative_entropy / self.n + entropy).exp()
        return {self.name: scores.mean().float(), f"{self.name}/std": scores.std(correction=0).float()}
