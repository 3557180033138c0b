"""The reward-modelling family: compared images -> scores -> a likelihood of what was preferred."""

import os
from abc import abstractmethod

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm


class RewardModeling(Algorithm):
    """Base of the methods that train `self.reward`. A method overrides `loss`.

    With `label` in the batch `ranking` is the cross-entropy, in which a tie (0.5) counts half for each. The policy is
    frozen. Logs `train/accuracy` and, on validation data, `val/loss` and `val/accuracy`. Writes the reward to
    `<run>/reward`, in the format that its class loads.
    """

    feedback, models_ties, weighs_pairs = ("win", "lose"), True, True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.policy.requires_grad_(False)

    @abstractmethod
    def loss(self, batch: dict, stage: str) -> Tensor:
        """The method's loss of a batch, a scalar; `stage` is train or val, for its logs."""

    def batch_loss(self, batch: dict) -> Tensor:
        return self.loss(batch, "train")

    def ranking(self, margin: Tensor, batch: dict, stage: str) -> Tensor:
        """Mean cross-entropy of margins r(win) - r(lose), (B,)."""
        self.log_accuracy(margin, stage)
        label = batch.get("label", torch.ones(len(margin))).to(margin)
        return F.binary_cross_entropy_with_logits(margin, label, self.weights(batch, margin))

    def weights(self, batch: dict, like: Tensor) -> Tensor:
        """The pairs' weights, (B,); 1 without any."""
        return batch.get("weight", torch.ones(len(like))).to(like)

    def log_accuracy(self, margin: Tensor, stage: str) -> None:
        """Logs the share of margins (B,) that are positive, a margin of 0 counted half."""
        share = (margin > 0).float() + 0.5 * (margin == 0).float()
        self.log_mean(f"{stage}/accuracy", share.mean(), len(margin))

    def on_validation_start(self) -> None:
        torch.manual_seed(0)  # the same timesteps and noises at every validation

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log_mean("val/loss", self.loss(batch, "val"), len(batch["prompt"]))

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            folder = os.path.join(self.trainer.default_root_dir, "reward")
            found = self.reward.save(folder)
            rank_zero_info(f"wrote the reward to {folder}" + (f"; load it with {found}" if found else ""))
