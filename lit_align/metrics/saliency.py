"""How well predicted heat maps agree with those of people: NSS, KLD, AUC-Judd, SIM and CC.

As RichHF-18K's evaluation has them (Liang et al. 2023, arXiv 2312.10240), after the MIT saliency benchmark. Each is a
mean over the maps that people marked at all; a pixel is fixated where their map is above 0.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from lit_align.metrics.metric import Measure

EPS = 1e-8


class SaliencyMetric(Measure):
    """Base of the metrics of heat maps. A subclass gives `score` of one map. It streams.

    `<name>/maps` is the number of maps that people marked, `<name>/empty` that of the others, which do not count.
    """

    def __init__(self):
        super().__init__()
        for state in ("total", "n", "empty_n"):
            self.add_sum(state)

    @abstractmethod
    def score(self, predicted: Tensor, human: Tensor) -> Tensor:
        """Of two maps (N,) float64, flattened, the second above 0 somewhere."""

    def update(self, predicted: Tensor, human: Tensor) -> None:
        """Predicted and people's maps, (B, H, W) each, not below 0."""
        if predicted.shape != human.shape:
            raise ValueError(
                f"maps of shape {tuple(predicted.shape)} and {tuple(human.shape)}: bring them to one size."
            )
        for p, g in zip(predicted.double().flatten(1), human.double().flatten(1)):
            if (g > 0).any():
                self.total, self.n = self.total + self.score(p, g), self.n + 1
            else:
                self.empty_n = self.empty_n + 1

    def compute(self) -> dict[str, Tensor]:
        found = {self.name: self.total / self.n, f"{self.name}/maps": self.n, f"{self.name}/empty": self.empty_n}
        return {name: value.float() for name, value in found.items()}


def unit(x: Tensor) -> Tensor:
    """A map with the sum 1; an empty one is even."""
    return x / x.sum() if x.sum() > 0 else torch.full_like(x, 1 / len(x))


class NSS(SaliencyMetric):
    """Normalised scanpath saliency: the mean of (P - mean P) / sd P over fixated pixels, sd with N - 1; 0 is chance. A
    flat prediction gives 0."""

    name = "nss"

    def score(self, predicted: Tensor, human: Tensor) -> Tensor:
        sd = predicted.std()
        return ((predicted - predicted.mean()) / (sd if sd > 0 else 1))[human > 0].mean()


class KLD(SaliencyMetric):
    """Kullback-Leibler divergence of people's map from the prediction, both with the sum 1: sum g log(eps + g / (p +
    eps)), eps 1e-8 (MIT's benchmark has 2.2e-16); lower is better."""

    name = "kld"

    def score(self, predicted: Tensor, human: Tensor) -> Tensor:
        p, g = unit(predicted), unit(human)
        return (g * (EPS + g / (p + EPS)).log()).sum()


class SIM(SaliencyMetric):
    """Similarity: sum min(p, g) of the two maps with the sum 1; 1 is perfect."""

    name = "sim"

    def score(self, predicted: Tensor, human: Tensor) -> Tensor:
        return torch.minimum(unit(predicted), unit(human)).sum()


class CC(SaliencyMetric):
    """Linear correlation of the two maps; a flat one gives 0."""

    name = "cc"

    def score(self, predicted: Tensor, human: Tensor) -> Tensor:
        p, g = predicted - predicted.mean(), human - human.mean()
        return (p * g).sum() / (p.norm() * g.norm() + EPS)


class AUCJudd(SaliencyMetric):
    """Area under the curve of the share of fixated pixels over the share of other pixels, by trapezoids, with each
    fixated pixel's predicted value as a threshold (Judd et al. 2009); 0.5 is chance. Equal values are one threshold, in
    place of the random jitter of the released code, so it is the same every time. A map that is fixated everywhere
    tells nothing: 0.5."""

    name = "auc_judd"

    def score(self, predicted: Tensor, human: Tensor) -> Tensor:
        fixated = human > 0
        if fixated.all():
            return predicted.new_tensor(0.5)
        thresholds = predicted[fixated].unique().flip(0)
        above = lambda x: 1 - torch.searchsorted(x.sort().values, thresholds).double() / len(x)  # share of x >= each
        edge = lambda x: torch.cat([x.new_zeros(1), x, x.new_ones(1)])
        return torch.trapezoid(edge(above(predicted[fixated])), edge(above(predicted[~fixated])))
