"""A warning for runs whose rewards are all the same number."""

import math

from lightning.pytorch.utilities import rank_zero_warn


class ConstantReward:
    """Warns once if all rewards of the first `steps` training steps of a fit are one number."""

    def __init__(self, steps: int = 20):
        self.steps, self.low, self.high = steps, math.inf, -math.inf

    def add(self, low: float, high: float, step: int) -> None:
        """Adds the lowest and the highest reward of a training step; steps count from 0."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        if step == self.steps - 1 and self.low == self.high:
            self.steps = 0  # once
            rank_zero_warn(
                f"all rewards of the first {step + 1} training steps are {low:g}, so there is nothing to learn: look "
                "at the samples, and at what the reward measures."
            )
