"""The reward-modelling family: pairs -> margin r(win) - r(lose) -> cross-entropy."""

import os
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm


class RewardModeling(Algorithm):
    """Base of the methods that train `self.reward` on pairs by -log sigmoid(margin). A method overrides `loss`.

    With `label` in the batch it is the cross-entropy, in which a tie (0.5) counts half for each. The policy is frozen.
    Logs `train/accuracy` and, on validation pairs, `val/accuracy`. Writes the reward to `<run>/reward`.
    """

    feedback, models_ties, weighs_pairs = ("win", "lose"), True, True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.policy.requires_grad_(False)

    @abstractmethod
    def loss(self, batch: dict, stage: str) -> Tensor:
        """The method's loss of a batch, a scalar, computed by `ranking`; `stage` is train or val."""

    def batch_loss(self, batch: dict) -> Tensor:
        return self.loss(batch, "train")

    def ranking(self, margin: Tensor, batch: dict, stage: str) -> Tensor:
        """Mean cross-entropy of margins r(win) - r(lose), (B,)."""
        label = batch.get("label", torch.ones(len(margin))).to(margin)
        self.log_mean(f"{stage}/accuracy", (margin > 0).float().mean() + 0.5 * (margin == 0).float().mean(), len(label))
        weight = batch.get("weight", torch.ones(len(margin))).to(margin)
        return F.binary_cross_entropy_with_logits(margin, label, weight)

    def on_validation_start(self) -> None:
        torch.manual_seed(0)  # the same timesteps and noises at every validation

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log_mean("val/loss", self.loss(batch, "val"), len(batch["prompt"]))

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self.reward.save(os.path.join(self.trainer.default_root_dir, "reward"))
