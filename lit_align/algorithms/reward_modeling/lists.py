"""Reward models from lists: K images of a prompt, with scores or ranks."""

from abc import abstractmethod

from torch import Tensor

from lit_align.algorithms.preference.ranking import better, gaps
from lit_align.algorithms.reward_modeling.image_rewards import ImageRewards


class RewardFromLists(ImageRewards):
    """Base of the methods that learn from lists {"images" (B, K, 3, H, W), "scores" (B, K, R)}; of R scores they take
    the mean. A method overrides `likelihood`.

    Logs `train/accuracy`, the share of the pairs of images with different scores that the reward orders as they do.
    """

    feedback = ("images", "scores")
    weighs_pairs = False

    @abstractmethod
    def likelihood(self, r: Tensor, score: Tensor) -> Tensor:
        """log P of the lists' order by scores (B, K) under rewards (B, K): (B,)."""

    def loss(self, batch: dict, stage: str) -> Tensor:
        r = self.scores(batch["images"], batch)
        score = batch["scores"].to(r).mean(2)
        if (margin := gaps(r)[better(score).bool()]).numel():
            self.log_accuracy(margin, stage)
        return -self.likelihood(r, score).mean()
