"""What a policy draws it learns from: collect -> some optimizer steps on what was collected -> now and then a new
reference."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm
from lit_align.diffusion.sampler import Sampler


class Online(Algorithm):
    """Base of the methods that learn from collections of their own samples, by a loss on denoising errors: the
    semi-online preference methods and the reward-weighted family. A method overrides `collect` and `step`.

    A training step collects for the prompts of the batch, and makes `updates` optimizer steps on what it found, each
    with fresh timesteps and noise. The optimizer is stepped by hand: clip here, not in the Trainer.

    Args:
        rollout: the sampler that draws (default: 50 DDIM steps, guidance 7.5).
        updates: optimizer steps on a collection.
        refresh_every: training steps after which the reference becomes the present policy; 0: never.
        max_grad_norm: gradient clipping.
    """

    samples_online = True

    def __init__(
        self,
        rollout: Sampler | None = None,
        updates: int = 4,
        refresh_every: int = 0,
        max_grad_norm: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.rollout, self.updates = rollout or Sampler(), updates
        self.refresh_every, self.moves_reference = refresh_every, refresh_every > 0
        self.max_grad_norm = max_grad_norm

    @abstractmethod
    def collect(self, batch: dict) -> dict | None:
        """What is learnt from, a batch for `step`; None where the samples give nothing."""

    def parts(self, collected: dict | None) -> Iterable[dict | None]:
        """The batch of each update: by default the whole collection."""
        return [collected] * self.updates

    @torch.no_grad()
    def draw_latents(self, prompts: list[str]) -> Tensor:
        """Samples of the policy (or, inside `policy.reference()`, of the reference)."""
        return self.rollout(self.policy, prompts).x

    def training_step(self, batch: dict, batch_idx: int) -> None:
        self.check(batch)
        optimizer = self.optimizers()
        for part in self.parts(self.collect(batch)):
            optimizer.zero_grad()
            loss = self.accumulate(part, batch)
            optimizer.step()
            self.log("train/loss", loss, prog_bar=True)
        if scheduler := self.lr_schedulers():
            scheduler.step()
        if self.refresh_every and (self.batch_number + 1) % self.refresh_every == 0:
            self.policy.update_reference()

    def accumulate(self, part: dict | None, batch: dict) -> Tensor:
        """Takes the gradient of an update's loss, which it returns."""
        loss = self.require_finite(self.batch_loss(part) if part else self.zero_loss(), batch["index"])
        self.manual_backward(loss)
        return loss.detach()
