"""The least of several rewards: the worst-off annotator, or the most cautious member of an ensemble."""

from torch import Tensor

from lit_align.rewards.multi_reward import Combination
from lit_align.rewards.reward import Reward


class Minimum(Combination):
    """min_i r_i of each image: worst-case optimisation of an ensemble (Coste et al. 2023, arXiv 2310.02743, section 3),
    and the image that no annotator dislikes. (MaxMin-RLHF takes the minimum of the mean rewards: algorithm MaxMin.)

    Args:
        rewards: name -> reward; on one scale, unless normalised.
        normalise: see Combination.
    """

    name = "minimum"

    def __init__(self, rewards: dict[str, Reward], normalise: bool = False):
        super().__init__(rewards, normalise)

    def aggregate(self, r: Tensor) -> Tensor:
        return r.amin(1)
