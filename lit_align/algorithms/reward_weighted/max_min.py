"""MaxMin: maximises the reward of the worst-off annotator."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_weighted.rwr import RWR
from lit_align.rewards.multi_reward import MultiReward
from lit_align.rewards.reward import Reward


class MaxMin(RWR):
    """MaxMin-RLHF (Chakraborty et al. 2024, arXiv 2402.08925): max_theta min_u E[r_u(c, x)] over annotators (or groups
    of them) u. RWR on r = sum_u lambda_u r_u. By default lambda is 1 for the annotator with the lowest mean reward of
    the rollout and 0 for the others; with `rate` it follows exponentiated gradient, lambda_u ~ lambda_u exp(-rate
    E[r_u]), persists across steps and is in the checkpoint.

    The paper learns r_u from preferences by expectation maximisation and maximises by PPO; here the r_u are given, on a
    common scale, and RWR replaces PPO: `weighting: sparse, per_prompt: true, quantile: 1` makes it RAFT.

    Logs lambda as `train/annotator/<name>`, and `train/reward/<name>`.

    Args:
        annotators: name -> reward.
        rate: of the exponentiated gradient, in 1/reward; none: the worst off only, as in the paper.
    """

    takes_several_rewards = True

    def __init__(self, annotators: dict[str, Reward], rate: float | None = None, **kwargs):
        super().__init__(reward=MultiReward(annotators), **kwargs)
        self.rate = rate
        self._logits: Tensor | None = None  # (R,) log lambda

    def weights(self, reward: Tensor) -> Tensor:
        """Weights (P, K) from rewards (P, K, R)."""
        mean = reward.flatten(0, 1).mean(0).cpu()  # (R,)
        if self.rate is None:
            self._logits = torch.full_like(mean, -torch.inf).index_fill(0, mean.argmin(), 0.0)
        else:
            self._logits = (torch.zeros_like(mean) if self._logits is None else self._logits) - self.rate * mean
        weight = self._logits.softmax(0)
        for name, value in zip(self.reward.parts, weight, strict=True):
            self.log_mean(f"train/annotator/{name}", value, 1)
        return super().weights(reward @ weight.to(reward))

    def get_extra_state(self) -> tuple:
        return (self._logits,)  # one leaf of a sharded checkpoint

    def set_extra_state(self, state: tuple) -> None:
        (self._logits,) = state
