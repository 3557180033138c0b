"""RankDPO: LiPO with gains and ranks from the labels of several rewards."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.ranking import Ranked, Ranking, better, gaps, lambdas, ranks


class RankDPO(Ranking):
    """Karthik et al. 2024, arXiv 2410.18013, eqs. 7-9: LiPO with gains 2^phi - 1 and ranks by phi, an image's win rate
    against the list's other images over all rewards (ties count half).

    Args:
        beta: coefficient of h (not stated in the paper).
    """

    def __init__(self, beta: float = 2500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def phi(self, scores: Tensor) -> Tensor:
        """Win rates (B, K) from scores (B, K, R)."""
        wins = (scores[:, :, None] > scores[:, None]).float() + 0.5 * (scores[:, :, None] == scores[:, None]).float()
        k = scores.shape[1]
        return (wins.mean(3).sum(2) - 0.5) / (k - 1)  # without the tie with itself

    def loss(self, r: Ranked) -> Tensor:
        phi = self.phi(r.scores)
        delta = lambdas(2**phi - 1, ranks(phi))
        return (better(phi) * delta * -F.logsigmoid(gaps(self.beta * r.h))).sum((1, 2))
