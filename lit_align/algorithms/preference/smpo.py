"""SmPO: InPO with soft labels, so close pairs weigh less."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.online import tile_rows
from lit_align.algorithms.preference.inpo import InPO
from lit_align.algorithms.preference.preference import Errors
from lit_align.rewards.reward import Reward


class SmPO(InPO):
    """arXiv 2506.02698: InPO with one ReNoise refinement, no fresh noise, and a soft label p = P(x^w better).

    As released, the gap's coefficient is beta gamma (2 p - 1), p = sigmoid(n(x^w) - n(x^l)), n = (reward - low) / (high
    - low), with fixed bounds: bounds from the batch would give every pair of a batch of one the same label. (The paper
    has gamma inside the sigmoid, which is the same for close pairs.)

    A pair whose loser has the higher reward is learnt the other way round. The reward is computed in every step
    (released: once, for the whole data set).

    Args:
        reward: scores winners and losers (the paper: PickScore).
        reward_range: low and high, the lowest and highest reward of the data set (released, for PickScore on Pick-a-Pic
            v2: 11.5435 and 28.2016).
        gamma: sharpness of the labels.
    """

    refuses = InPO.refuses | {"safeguard": "its reward decides which image of a pair wins"}

    def __init__(
        self,
        reward: Reward,
        reward_range: tuple[float, float],
        gamma: float = 10.0,
        eta: float = 0.0,
        refinements: int = 1,
        **kwargs,
    ):
        super().__init__(eta=eta, refinements=refinements, **kwargs)
        self.reward, self.gamma = reward.eval().requires_grad_(False), gamma
        self.low, self.high = reward_range
        if not self.low < self.high:
            raise ValueError(f"SmPO: reward_range is {[*reward_range]}; give the lowest reward, then the highest.")

    @torch.no_grad()
    def label(self, batch: dict) -> Tensor:
        """p (B,) of a batch."""
        latents = torch.cat([self.latents(batch, "win"), self.latents(batch, "lose")])
        win, lose = self.judge(self.reward, latents, tile_rows(batch, 2)).to(latents.device).chunk(2)  # (B,) each
        return torch.sigmoid((win - lose) / (self.high - self.low))

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.gamma * (2 * self.label(e.batch) - 1) * self.beta * e.gap)
