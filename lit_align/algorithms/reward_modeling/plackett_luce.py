"""Plackett-Luce: an image reward, trained on rankings of K images of a prompt."""

from torch import Tensor

from lit_align.algorithms.preference.ranking import plackett_luce
from lit_align.algorithms.reward_modeling.lists import RewardFromLists


class PlackettLuce(RewardFromLists):
    """-sum_k log [exp r_k / sum of exp r_j over j = k and the images below k] (Plackett 1975; Luce 1959; InstructGPT,
    arXiv 2203.02155, has all pairs of a ranking in its place). Tied images are not compared: PartitionedPreference
    takes ties as they are.

    Args:
        reward, freeze, policy: see ImageRewards.
    """

    def likelihood(self, r: Tensor, score: Tensor) -> Tensor:
        return -plackett_luce(r, score)
