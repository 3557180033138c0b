"""MaPO: margin-aware preference optimization, without a reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class MaPO(Preference):
    """Hong et al. 2024, arXiv 2406.06424: L_w - beta log sigmoid(T (f(L_w) - f(L_l))), f(L) = s L / (exp(s L) - 1).

    f decreases from 1 with slope -s / 2, so T s / 2 (250 by default) is the coefficient of L_l - L_w.

    Args:
        beta: weight of the margin term.
        scale: T.
        snr: s.
    """

    uses_reference = False

    def __init__(self, beta: float = 0.1, scale: float = 1000.0, snr: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.scale, self.snr = beta, scale, snr

    def score(self, error: Tensor) -> Tensor:
        """f of the errors, by its series near 0."""
        x = self.snr * error
        small = x.abs() < 1e-3
        return torch.where(small, 1 - x / 2 + x.square() / 12, x / torch.expm1(x.where(~small, 1.0)))

    def loss(self, e: Errors) -> Tensor:
        return e.win - self.beta * F.logsigmoid(self.scale * (self.score(e.win) - self.score(e.lose)))
