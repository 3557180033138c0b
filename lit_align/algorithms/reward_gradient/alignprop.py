"""AlignProp: backpropagates the reward through sampling, truncated at random."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.sampler import last_k, random_steps


class AlignProp(RewardGradient):
    """Prabhudesai et al. 2023, arXiv 2310.03739: weight |target - r(x_0, c)|, by back-propagation through the sampler.

    At a step without gradient the prediction is a constant; gradient flows along x_t -> x_s only. A fixed K is DRaFT.

    Args:
        truncation: step: step i of T has gradient with probability (i + 1) / (T + 1), independently (the released code
            of 2023); trajectory: the last K steps have it, K ~ U{1 .. T} (the paper; its K starts at 0).
        target: a reward out of reach, in units of the reward: 10 for LAION aesthetics, 1 for HPSv2.
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
