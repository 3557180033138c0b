"""CaPO: pairs from Pareto fronts of several calibrated rewards; the target is their gap in win rate."""

import torch
from torch import Tensor

from lit_align.algorithms.preference.ranking import Ranked, Ranking


def calibrated(scores: Tensor) -> Tensor:
    """Calibrated rewards (B, K, R) of scores (B, K, R): the expected win rate against the list's other images,
    R_ca(x_i) = mean over j != i of sigmoid(R_i - R_j)."""
    wins = torch.sigmoid(scores[:, :, None] - scores[:, None])  # (B, K, K, R)
    return (wins.sum(2) - 0.5) / (scores.shape[1] - 1)


def front(scores: Tensor) -> Tensor:
    """(B, K) bool: images that no other image dominates (at least as good in every reward, better in one)."""
    a, b = scores[:, :, None], scores[:, None]  # i, j
    dominated = (b >= a).all(3) & (b > a).any(3)
    return ~dominated.any(2)


class CaPO(Ranking):
    """Lee et al. 2025, arXiv 2502.02588: (R_ca(x+) - R_ca(x-) - beta w(t) (h(x+) - h(x-)))^2. x+ is drawn from the
    upper Pareto front and x- from the lower one, R_ca is the mean calibrated reward, w(t) = sigmoid(bias - log SNR).

    If x+ and x- are the same image, both gaps are 0 and the list gives no gradient.

    Args:
        beta: coefficient of h.
        bias: b of w(t).
    """

    def __init__(self, beta: float = 500.0, bias: float = 1.5, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.bias = beta, bias

    def loss(self, r: Ranked) -> Tensor:
        reward = calibrated(r.scores).mean(2)  # (B, K)
        plus = torch.multinomial(front(r.scores).float(), 1)  # (B, 1)
        minus = torch.multinomial(front(-r.scores).float(), 1)
        gap = lambda x: (x.gather(1, plus) - x.gather(1, minus)).squeeze(1)
        w = torch.sigmoid(self.bias - self.policy.process.snr(r.t).log())
        return (gap(reward) - self.beta * w * gap(r.h)).square()
