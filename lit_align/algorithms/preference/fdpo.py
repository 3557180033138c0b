"""f-DPO: DPO with another divergence than the reverse KL."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def link(u: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f'(exp(u)) up to constants, of a log-ratio u; exponents are clamped at 80."""
    if divergence == "forward_kl":
        return -(-u).clamp(max=80).exp()
    if divergence == "js":
        return F.logsigmoid(u)
    if divergence == "alpha":
        return ((alpha - 1) * u).clamp(max=80).exp() / (alpha - 1)
    return u


class FDPO(Preference):
    """Wang et al. 2023, arXiv 2309.16240, eq. 10: -log sigmoid(f'(u_w) - f'(u_l)); the port to diffusion is ours.

    An image's log-ratio is u = beta (reference error - error). f' is not linear, so beta acts inside it. Reverse KL is
    Diffusion-DPO. alpha goes from 0 (forward KL) to 1 (reverse KL); some papers write 1 - alpha for it.

    Args:
        beta: coefficient of the errors.
        divergence: reverse_kl, forward_kl, js or alpha.
        alpha: of the alpha-divergence, in (0, 1).
    """

    def __init__(self, beta: float = 2500.0, divergence: Divergence = "js", alpha: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.divergence, self.alpha = beta, divergence, alpha

    def loss(self, e: Errors) -> Tensor:
        u_w, u_l = self.beta * (e.ref_win - e.win), self.beta * (e.ref_lose - e.lose)
        return -F.logsigmoid(link(u_w, self.divergence, self.alpha) - link(u_l, self.divergence, self.alpha))
