"""AlignProp: the reward's gradient through sampling, truncated at random."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.sampler import last_k, random_steps


class AlignProp(RewardGradient):
    """Prabhudesai et al. 2023, arXiv 2310.03739: weight |target - r(x_0, c)| by back-propagation through the sampler.

    Where a step is left out, its prediction is a constant and gradient passes along x_t -> x_s alone. A fixed K is
    DRaFT's.

    Args:
        truncation: step: step i of T has gradient with probability (i + 1) / (T + 1), each drawn on its own (the
            released code of 2023); trajectory: the last K steps have, K ~ U{1 .. T} (the paper, which starts at 0).
        target: in units of the reward and out of its reach: 10 for LAION aesthetics, 1 for HPSv2.
        weight: of the loss.
    """

    def __init__(
        self,
        truncation: Literal["step", "trajectory"] = "step",
        target: float = 10.0,
        weight: float = 0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.truncation, self.target, self.weight = truncation, target, weight

    def grad_steps(self, steps: int) -> Tensor:
        if self.truncation == "step":
            return random_steps(steps)
        return last_k(steps, torch.randint(1, steps + 1, ()).item())

    def loss(self, reward: Tensor) -> Tensor:
        return self.weight * (self.target - reward).abs()
