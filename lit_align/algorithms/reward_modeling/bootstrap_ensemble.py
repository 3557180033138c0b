"""An ensemble of rewards, whose disagreement says how uncertain they are."""

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.reward_modeling.image_rewards import SeveralRewards


class BootstrapEnsemble(SeveralRewards):
    """Bradley-Terry for R rewards, each on its own resample of the pairs: a pair counts Poisson(1) times for a reward,
    the online bootstrap (Oza & Russell 2001). `bootstrap: false` trains all on all pairs, as in Coste et al. 2023
    (arXiv 2310.02743): they then differ by their random weights alone, so give rewards that have some.

    Logs `train/disagreement`, the standard deviation of the margins over the rewards. The rewards Ensemble and Minimum
    take what it writes.

    Args:
        bootstrap: resample the pairs.
        rewards: name -> reward model to train.
        freeze, policy: see ImageRewards.
    """

    def __init__(self, bootstrap: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.bootstrap = bootstrap

    def counts(self, rows: list) -> Tensor:
        """How often each row counts for each reward, (B, R); the same whenever the row is seen."""
        drawn = (
            np.random.default_rng(zlib.crc32(str(row).encode())).poisson(1, len(self.reward.names)) for row in rows
        )
        return torch.tensor(np.stack(list(drawn)))

    def loss(self, batch: dict, stage: str) -> Tensor:
        win, lose = self.win_and_lose(batch)
        margin = win - lose  # (B, R)
        self.log_accuracy(margin.mean(1), stage)
        self.log_mean(f"{stage}/disagreement", margin.detach().std(1, correction=0).mean(), len(margin))
        label = batch.get("label", torch.ones(len(margin))).to(margin)[:, None].expand_as(margin)
        loss = F.binary_cross_entropy_with_logits(margin, label, reduction="none")
        resampled = self.bootstrap and stage == "train"
        times = self.counts(batch["index"]).to(loss) if resampled else torch.ones_like(loss)
        return (loss * times * self.weights(batch, win)[:, None]).mean()
