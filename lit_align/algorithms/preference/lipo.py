"""LiPO: pairwise DPO over a list, each pair weighted by the change of NDCG when it is swapped."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.ranking import Ranked, Ranking, better, gaps, lambdas


class LiPO(Ranking):
    """Liu et al. 2024, arXiv 2402.01878 (LiPO-lambda, eq. 13): sum over i better than j of Delta_ij -log sigmoid(u_i -
    u_j), u = beta h, with gains 2^score and ranks by the policy's own u (at the start all u are equal and the ranks
    follow the list's order). The port to diffusion is ours.

    Args:
        beta: coefficient of h.
    """

    def __init__(self, beta: float = 2500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def loss(self, r: Ranked) -> Tensor:
        u = self.beta * r.h
        rank = 1 + u.detach().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        delta = lambdas(2**r.score, rank)
        return (better(r.score) * delta * -F.logsigmoid(gaps(u))).sum((1, 2))
