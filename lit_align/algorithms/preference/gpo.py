"""GPO: a convex function of the gap."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference

CONVEX = {
    "logistic": lambda x: -F.logsigmoid(x),  # DPO
    "hinge": lambda x: F.relu(1 - x),  # SLiC
    "square": lambda x: (x - 1).square(),  # IPO
    "exponential": lambda x: (-x).clamp(max=80).exp(),
    "truncated_square": lambda x: F.relu(1 - x).square(),
}


class GPO(Preference):
    """Tang et al. 2024, arXiv 2402.05749, eq. 4: f(beta D) with f convex and f'(0) < 0; the port to diffusion is ours.

    Args:
        beta: coefficient of D.
        f: logistic (DPO), hinge (SLiC), square (IPO), exponential or truncated_square.
    """

    def __init__(
        self,
        beta: float = 2500.0,
        f: Literal["logistic", "hinge", "square", "exponential", "truncated_square"] = "truncated_square",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.beta, self.f = beta, f

    def loss(self, e: Errors) -> Tensor:
        return CONVEX[self.f](self.beta * e.gap)
