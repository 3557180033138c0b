"""Diffusion-ORPO: SFT on winners with an odds-ratio penalty, without a reference."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class DiffusionORPO(Preference):
    """Hong et al. 2024, arXiv 2403.07691, eq. 6: L_w - lambda log sigmoid(log odds_w - log odds_l).

    The port follows diffusers' Diffusion-ORPO with the sign corrected (theirs rewards a larger error on x^w). Here log
    p = -kappa error. For every kappa of practical use p is tiny, so p / (1 - p) = p and the log-odds gap is kappa (L_l
    - L_w).

    Args:
        weight: lambda.
        kappa: coefficient of L_l - L_w (diffusers: 1, which is almost plain SFT; MaPO's is about 250).
    """

    uses_reference = False

    def __init__(self, weight: float = 0.1, kappa: float = 250.0, **kwargs):
        super().__init__(**kwargs)
        self.weight, self.kappa = weight, kappa

    def loss(self, e: Errors) -> Tensor:
        return e.win - self.weight * F.logsigmoid(self.kappa * (e.lose - e.win))
