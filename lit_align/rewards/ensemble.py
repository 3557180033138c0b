"""An ensemble of rewards: their mean, less where they disagree."""

from torch import Tensor

from lit_align.rewards.multi_reward import Combination
from lit_align.rewards.reward import Reward


class Ensemble(Combination):
    """mean_i r_i - k std_i r_i over R reward models of the same thing: a lower confidence bound, so that a policy gains
    nothing where the models disagree. The standard deviation is that of the R numbers (divided by R). Coste et al. 2023
    (arXiv 2310.02743, uncertainty-weighted optimisation) subtract the variance.

    A training run logs the mean standard deviation as `train/reward/std`: it rises under reward hacking.

    Args:
        rewards: name -> reward; on one scale, unless normalised.
        k: how many standard deviations are subtracted; below 0 disagreement is rewarded.
        normalise: see Combination.
    """

    name = "ensemble"

    def __init__(self, rewards: dict[str, Reward], k: float = 1.0, normalise: bool = False):
        super().__init__(rewards, normalise)
        self.k = k
        if len(rewards) < 2:
            raise ValueError(f"Ensemble has {len(rewards)} reward: name 2 or more.")

    def aggregate(self, r: Tensor) -> Tensor:
        std = r.var(1, correction=0).clamp(min=1e-12).sqrt()  # the root of 0 has no gradient
        self.latest["std"] = std.detach()
        return r.mean(1) - self.k * std
