"""RRHF: a hinge loss on the order of the policy's own likelihoods, plus SFT on the best image."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.ranking import Ranked, Ranking, best, better, gaps


class RRHF(Ranking):
    """Yuan et al. 2023, arXiv 2304.05302, eqs. 2-4: sum over i better than j of max(0, p_j - p_i), plus SFT on the best
    image; p is the length-normalised log-probability. The port to diffusion is ours: p = -kappa error.

    Args:
        kappa: coefficient of the errors in the ranking term.
        sft_weight: weight of the best image's error.
    """

    uses_reference = False

    def __init__(self, kappa: float = 1.0, sft_weight: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.kappa, self.sft_weight = kappa, sft_weight

    def loss(self, r: Ranked) -> Tensor:
        wrong = F.relu(gaps(self.kappa * r.error))  # p_j - p_i = kappa (error_i - error_j)
        return (better(r.score) * wrong).sum((1, 2)) + self.sft_weight * (best(r.score) * r.error).sum(1)
