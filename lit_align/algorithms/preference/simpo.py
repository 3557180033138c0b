"""Diffusion-SimPO: DPO's logistic loss on the policy's own errors, with a target margin and no reference."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class DiffusionSimPO(Preference):
    """Meng et al. 2024, arXiv 2405.14734, eq. 6: -log sigmoid(beta (s_w - s_l) - gamma), s the length-normalised log p.

    The port to diffusion is ours: s = -error, as a mean error is the exact analogue of length normalisation. Nothing
    bounds the loser's error: watch `train/error/lose`.

    Args:
        beta: coefficient of L_l - L_w.
        gamma: target margin, in units of the logit.
    """

    uses_reference = False

    def __init__(self, beta: float = 2500.0, gamma: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.gamma = beta, gamma

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * (e.lose - e.win) - self.gamma)
