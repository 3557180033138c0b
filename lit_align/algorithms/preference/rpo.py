"""Diffusion-RPO: a winner is also compared with the losers of related captions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference
from lit_align.ranges import POSITIVE
from lit_align.rewards.reward import Reward


class DiffusionRPO(Preference):
    """Gu et al. 2024, arXiv 2406.06382: every winner i of a batch against every loser j,

        sum_j w_ij (-log sigmoid(beta (h_i - h_j))),    h = reference error - error,
        w_ij = softmax_j(-(1 - cos(f_i, f_j)) / tau),

    f the embedding of a caption and its image. The batch shares one time and one noise. With one pair it is
    Diffusion-DPO. A rank compares its own pairs. Wants a batch of several pairs on each device.

    Args:
        beta: coefficient of h_i - h_j.
        tau: temperature of the weights: 0.01 compares with a winner's own loser almost alone.
        features: a reward whose `embed` gives the images' features, such as CLIPScore; the cosine is then the mean of
            captions' and images'. None: captions alone, by the policy's embedding.
    """

    ranges = {"tau": POSITIVE}

    def __init__(self, beta: float = 2500.0, tau: float = 0.01, features: Reward | None = None, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.tau = beta, tau
        self.features = features and features.eval().requires_grad_(False)

    def noise(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        t, eps = super().noise(x_0, cond)
        return t[:1].expand(len(t)), eps[:1].expand(len(t), *eps.shape[1:])

    @torch.no_grad()
    def weights(self, batch: dict) -> Tensor:
        """w (B, B) of a batch; each row sums to 1."""
        cond = batch["cond"] if "cond" in batch else self.policy.condition(batch["prompt"], batch.get("columns"))
        caption = F.normalize(self.policy.summary(cond).float(), dim=1)
        cosine = caption @ caption.T
        if self.features is not None:
            embed = lambda key: self.features.embed(self.policy.decode(self.latents(batch, key)).float()).float()
            win, lose = (F.normalize(embed(key), dim=1) for key in ("win", "lose"))
            cosine = (cosine + win @ lose.T) / 2
        return torch.softmax((cosine - 1) / self.tau, 1)

    def loss(self, e: Errors) -> Tensor:
        gaps = (e.ref_win - e.win)[:, None] - (e.ref_lose - e.lose)  # (B, B)
        return -(self.weights(e.batch) * F.logsigmoid(self.beta * gaps)).sum(1)
