"""SmPO: InPO with soft labels, so close pairs weigh less."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.online import tile_rows
from lit_align.algorithms.preference.inpo import InPO
from lit_align.algorithms.preference.preference import Errors
from lit_align.rewards.reward import Reward


class SmPO(InPO):
    """arXiv 2506.02698: InPO with one ReNoise refinement and a soft label p = P(x^w better) in place of 1. The gap's
    coefficient is beta (2p - 1); p is the softmax of `gamma` times the two rewards, min-max normalised over the batch.

    Args:
        reward: scores winners and losers (the paper: PickScore).
        gamma: sharpness of p; the smaller, the softer the labels.
    """

    def __init__(self, reward: Reward, gamma: float = 10.0, inversion_steps: int = 9, refinements: int = 1, **kwargs):
        super().__init__(inversion_steps=inversion_steps, refinements=refinements, **kwargs)
        self.reward, self.gamma = reward.eval().requires_grad_(False), gamma

    @torch.no_grad()
    def label(self, batch: dict) -> Tensor:
        """p (B,) of a batch."""
        latents = torch.cat([self.latents(batch, "win"), self.latents(batch, "lose")])
        score = self.judge(self.reward, latents, tile_rows(batch, 2)).to(latents.device)  # (2B,)
        score = (score - score.min()) / (score.max() - score.min()).clamp(min=1e-6)
        return torch.sigmoid(self.gamma * (score[: len(score) // 2] - score[len(score) // 2 :]))

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid((2 * self.label(e.batch) - 1) * self.beta * e.gap)
