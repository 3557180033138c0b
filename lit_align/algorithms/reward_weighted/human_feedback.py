"""Reward-weighted likelihood plus a pre-training loss: the first text-to-image alignment to human feedback."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood
from lit_align.ranges import NOT_NEGATIVE


class RewardWeighted(WeightedLikelihood):
    """Lee et al. 2023, arXiv 2302.12192, the likelihood objective of its third stage, on samples x of the model before
    training (the reference) and pre-training images x':

        L = E[r(x, c) ||prediction - target||^2] + beta E[||prediction' - target'||^2]

    In the paper r is in [0, 1]; here a negative reward counts as 0, as a weight must not be negative. (The paper
    samples once, in advance; here each batch's captions get fresh samples, from the same distribution.)

    Args:
        beta: weight of the pre-training loss, in units of the reward.
        learns_from: batch key of the pre-training images.
    """

    feedback, uses_reference, ranges = ("image",), True, {"beta": NOT_NEGATIVE}

    def __init__(self, beta: float = 0.01, learns_from: Literal["image", "win"] = "image", **kwargs):
        super().__init__(**kwargs)
        self.beta, self.feedback = beta, (learns_from,)

    def weights(self, reward: Tensor) -> Tensor:
        return reward.clamp(min=0)

    def collect(self, batch: dict) -> dict:
        samples, data = super().collect(batch), self.latents(batch, self.feedback[0])
        n, m = len(samples["weight"]), len(data)
        weight = torch.cat([samples["weight"] / n, torch.full_like(samples["weight"][:1], self.beta / m).expand(m)])
        return {
            "prompt": samples["prompt"] + batch["prompt"],
            "image_latents": torch.cat([samples["image_latents"], data]),
            "weight": weight * (n + m),  # the mean over the rows is then the sum of the two means
        }
