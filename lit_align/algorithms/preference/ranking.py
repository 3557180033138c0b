"""Ranking methods: K scored images of a prompt -> one t per list -> `loss(ranking)`."""

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm
from lit_align.algorithms.parts.denoising_errors import denoised


class Ranked(NamedTuple):
    """B lists of K images."""

    error: Tensor  # (B, K) of the policy
    ref_error: Tensor  # (B, K) of the reference, without gradient; zeros for methods without one
    scores: Tensor  # (B, K, R) of R rewards, higher is better
    t: Tensor  # (B,) the list's timestep

    @property
    def h(self) -> Tensor:
        """(B, K) reference error - error: how much the policy improved on each image."""
        return self.ref_error - self.error

    @property
    def score(self) -> Tensor:
        """(B, K) mean over the rewards."""
        return self.scores.mean(2)


def better(score: Tensor) -> Tensor:
    """(B, K, K) 1 where image i has a higher score than image j; ties are 0 both ways."""
    return (score[:, :, None] > score[:, None, :]).float()


def gaps(a: Tensor) -> Tensor:
    """(B, K, K) a_i - a_j of a (B, K)."""
    return a[:, :, None] - a[:, None, :]


def ranks(a: Tensor) -> Tensor:
    """(B, K) rank of each entry, 1 for the largest; ties share their mean rank."""
    above = better(a).sum(1)  # how many entries are larger
    equal = (gaps(a) == 0).float().sum(1) - 1
    return 1 + above + equal / 2


def plackett_luce(a: Tensor, score: Tensor) -> Tensor:
    """Negative log-likelihood (B,) of the ranking by scores (B, K) under log-weights a (B, K): each image against all
    images with lower scores, -sum_k log [exp a_k / (exp a_k + sum over lower j of exp a_j)]. Tied images are not
    compared; without ties this is the Plackett-Luce model, and for two images Bradley-Terry."""
    lower = better(score) + torch.eye(a.shape[1], device=a.device)
    others = a[:, None, :].masked_fill(lower == 0, -torch.inf).logsumexp(2)
    return (others - a).sum(1)


def best(score: Tensor) -> Tensor:
    """(B, K) weights that select the best image of each list; ties share the weight."""
    top = (score == score.amax(1, keepdim=True)).float()
    return top / top.sum(1, keepdim=True)


def lambdas(gain: Tensor, rank: Tensor) -> Tensor:
    """NDCG weights (B, K, K) |G_i - G_j| |1 / D(i) - 1 / D(j)|, D = ln(1 + rank), from gains and ranks (B, K)."""
    return gaps(gain).abs() * gaps(1 / rank.log1p()).abs()


class Ranking(Algorithm):
    """Base of the methods that learn from lists: batches {"images" (B, K, 3, H, W), "scores" (B, K, R), "prompt"}.

    The images of a list share the timestep; each image has its own noise. Errors are means over the sample, as in
    `Preference`. A method overrides `loss`. Images with equal scores are never compared.

    Logs `train/error` (mean) and `train/implicit_accuracy`: the fraction of image pairs with different scores that h
    orders as the scores do.

    Args:
        timestep_sampling: distribution of t: uniform, or logit_normal or mode for flow matching (arXiv 2403.03206).
    """

    feedback = ("images", "scores")
    uses_reference = True

    def __init__(self, timestep_sampling: Literal["uniform", "logit_normal", "mode"] = "uniform", **kwargs):
        super().__init__(**kwargs)
        self.timestep_sampling = timestep_sampling

    @abstractmethod
    def loss(self, r: Ranked) -> Tensor:
        """The method's equation: (B,) from B lists."""

    def ranked(self, batch: dict) -> Ranked:
        x_0 = self.latents(batch, "images")  # (B, K, C, h, w)
        b, k = x_0.shape[:2]
        t = self.policy.process.sample_timesteps(b, self.timestep_sampling, device=x_0.device)
        cond = {key: v.repeat_interleave(k, 0) for key, v in self.cond(batch).items()}
        x_0 = x_0.flatten(0, 1)
        d = denoised(self.policy, x_0, t.repeat_interleave(k), torch.randn_like(x_0), cond, self.uses_reference)
        return Ranked(d.error.view(b, k), d.ref_error.view(b, k), batch["scores"].to(x_0.device), t)

    def batch_loss(self, batch: dict) -> Tensor:
        r = self.ranked(batch)
        with torch.no_grad():
            pairs, margin = better(r.score), gaps(r.h)
            right = (margin > 0).float() + 0.5 * (margin == 0).float()
            self.log_mean("train/implicit_accuracy", (pairs * right).sum() / pairs.sum().clamp(min=1), len(r.t))
            self.log_mean("train/error", r.error.mean(), len(r.t))
        return self.loss(r).mean()
