"""Reward-weighted likelihood with an anchor on data: the first alignment of a text-to-image model to human feedback."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood
from lit_align.ranges import NOT_NEGATIVE


class RewardWeighted(WeightedLikelihood):
    """Lee et al. 2023, arXiv 2302.12192, the likelihood objective of its third stage, with samples x of the model as it
    was before training (the reference) and pre-training images x':

        L = E[r(x, c) ||prediction - target||^2] + beta E[||prediction' - target'||^2]

    r lies in [0, 1] there; a negative reward counts as 0, since nothing may be unlearnt. (The paper draws its samples
    once, beforehand; here fresh ones for the captions of the data batch, from the same law.)

    Args:
        beta: weight of the pre-training loss, in units of the reward.
        learns_from: the batch key of the pre-training images.
    """

    feedback, uses_reference, ranges = ("image",), True, {"beta": NOT_NEGATIVE}

    def __init__(self, beta: float = 0.01, learns_from: Literal["image", "win"] = "image", **kwargs):
        super().__init__(**kwargs)
        self.beta, self.feedback = beta, (learns_from,)

    def weights(self, reward: Tensor) -> Tensor:
        return reward.clamp(min=0)

    def collect(self, batch: dict) -> dict:
        own, data = super().collect(batch), self.latents(batch, self.feedback[0])
        n, m = len(own["weight"]), len(data)
        weight = torch.cat([own["weight"] / n, torch.full_like(own["weight"][:1], self.beta / m).expand(m)])
        return {
            "prompt": own["prompt"] + batch["prompt"],
            "image_latents": torch.cat([own["image_latents"], data]),
            "weight": weight * (n + m),  # the mean over the rows is then the sum of the two means
        }
