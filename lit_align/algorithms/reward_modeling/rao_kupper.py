"""Rao-Kupper: Bradley-Terry with a threshold below which an annotator sees no difference."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.algorithms.reward_modeling.image_rewards import ImageRewards


class RaoKupper(ImageRewards):
    """With d = r(c, x_1) - r(c, x_2) and theta > 1 (Rao & Kupper 1967; the loss of VideoReward, arXiv 2501.13918):
    P(x_1 preferred) = sigmoid(d - ln theta), P(tie) = (theta^2 - 1) sigmoid(d - ln theta) sigmoid(-d - ln theta).

    Takes pairs with ties (`label` 0.5: --data.ties keep). Ties lie where d is near 0, so they teach what is equal, not
    only what is better. theta is trained with the reward and logged as `train/theta`. `train/accuracy` counts the pairs
    that are no ties.

    Args:
        theta: at the start, above 1 (VideoReward: 5, fixed).
        learn_theta: train it.
        reward, freeze, policy: see ImageRewards.
    """

    def __init__(self, theta: float = 2.0, learn_theta: bool = True, **kwargs):
        super().__init__(**kwargs)
        if theta <= 1:
            raise ValueError(f"theta is {theta}: give a number above 1.")
        self.log_excess = nn.Parameter(torch.tensor(math.log(theta - 1)), requires_grad=learn_theta)  # ln(theta - 1)

    @property
    def theta(self) -> Tensor:
        return 1 + self.log_excess.exp()

    def loss(self, batch: dict, stage: str) -> Tensor:
        win, lose = self.win_and_lose(batch)
        d, eta = win - lose, self.theta.log()
        tie = batch.get("label", torch.ones(len(d))).to(d) == 0.5
        won, lost = F.logsigmoid(d - eta), F.logsigmoid(-d - eta)
        likelihood = torch.where(tie, (self.theta.square() - 1).log() + won + lost, won)
        self.log_mean(f"{stage}/theta", self.theta.detach(), len(d))
        if not tie.all():
            self.log_accuracy(d[~tie], stage)
        return -(likelihood * self.weights(batch, d)).mean()
