"""Partitioned preferences: Plackett-Luce for rankings with ties, a sequence of groups of equal images."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_modeling.lists import RewardFromLists

POINTS, LOWEST, HIGHEST = 512, -36.0, 4.5  # of the quadrature over s


def log_partition_likelihood(r: Tensor, score: Tensor) -> Tensor:
    """log P (B,) under Plackett-Luce with log-weights r (B, K) that all images of a higher score (B, K) come before all
    of a lower one, in whatever order within a score: the sum over all rankings that agree.

    A group S comes before the images below it, of total weight W, with probability integral_0^inf e^-t prod_{i in S}
    (1 - e^(-t w_i / W)) dt (Ma et al. 2021, PMLR 130, proposition 1, with u = e^-t): every image draws an exponential
    time of rate w, and all of S finish before the first of the others. With t = e^s the trapezoid rule converges
    geometrically; the whole is summed in logarithms.
    """
    s = torch.linspace(LOWEST, HIGHEST, POINTS, dtype=torch.float64, device=r.device)
    log_w, total = r.double(), r.new_zeros(len(r), dtype=torch.float64)
    for k in range(score.shape[1]):  # the group of image k, counted at its first image
        group, below = score == score[:, k : k + 1], score < score[:, k : k + 1]
        counts = ~group[:, :k].any(1) & below.any(1)
        others = log_w.masked_fill(~(below | ~counts[:, None]), -torch.inf).logsumexp(1, keepdim=True)  # ln W
        rate = ((log_w - others)[:, :, None] + s).exp()  # (B, K, POINTS) t w_i / W
        finished = (-torch.expm1(-rate.clamp(min=1e-300))).log().masked_fill(~group[:, :, None], 0.0).sum(1)
        whole = (s - s.exp() + finished).logsumexp(1) + (s[1] - s[0]).log()
        total = total + whole.where(counts, torch.zeros_like(whole))
    return total.to(r)


class PartitionedPreference(RewardFromLists):
    """-log P that the images of a higher score come before those of a lower one, whatever the order of equal ones: the
    likelihood of a partition under Plackett-Luce (Ma et al. 2021, "Learning-to-Rank with Partitioned Preference", PMLR
    130). Without ties it is PlackettLuce, with one image at the top the softmax cross-entropy of the best.

    Args:
        reward, freeze, policy: see ImageRewards.
    """

    def likelihood(self, r: Tensor, score: Tensor) -> Tensor:
        return log_partition_likelihood(r, score)
