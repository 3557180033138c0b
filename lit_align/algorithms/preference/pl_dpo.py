"""Plackett-Luce DPO: the likelihood of a ranking under the policy's log-ratios."""

from torch import Tensor

from lit_align.algorithms.preference.ranking import Ranked, Ranking, plackett_luce


class PlackettLuceDPO(Ranking):
    """Rafailov et al. 2023, arXiv 2305.18290, eq. 20 (DPO under Plackett-Luce) on log-ratios u = beta h; the port to
    diffusion is ours (Diffusion-LPO, arXiv 2510.01540, is similar).

    Args:
        beta: coefficient of h.
    """

    def __init__(self, beta: float = 2500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def loss(self, r: Ranked) -> Tensor:
        return plackett_luce(self.beta * r.h, r.score)
