"""Online training: sample from the policy -> several optimizer steps on the samples -> update the reference."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import concatenate, select_rows
from lit_align.ranges import check_ranges


class Online(Algorithm):
    """Base of the methods that sample during training. A family overrides `collect`, `optimizer_steps` and
    `batch_loss`.

    A training step samples for the prompts of the batch and makes several optimizer steps on the samples, each on
    minibatches whose gradients add up. Optimization is manual: set `max_grad_norm` here, not in the Trainer.

    Args:
        rollout: sampler of the training samples (default: 50 DDIM steps, guidance 7.5).
        updates: optimizer steps per training step.
        minibatch: rows per forward, the same in rollout and update, so first-step ratios are exactly 1 in bf16 as well.
        refresh_every: training steps between updates of the reference to the current policy; 0: never.
        max_grad_norm: largest gradient norm of a parameter group.
    """

    samples_online = True

    def __init__(
        self,
        rollout: Sampler | None = None,
        updates: int = 4,
        minibatch: int = 8,
        refresh_every: int = 0,
        max_grad_norm: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.rollout, self.updates, self.minibatch = rollout or Sampler(), updates, minibatch
        self.refresh_every, self.max_grad_norm = refresh_every, max_grad_norm
        self.moves_reference = self.moves_reference or refresh_every > 0

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for part in (self.rollout, self.rollout.transition):
            check_ranges(part)

    @abstractmethod
    def collect(self, batch: dict) -> Any:
        """Samples, with what `optimizer_steps` needs to learn from them; None if there is nothing to learn."""

    def optimizer_steps(self, collected: Any) -> Iterator[list]:
        """Yields the minibatches of one optimizer step at a time, after the previous step was made. By default a step
        has one minibatch: everything collected."""
        return ([collected] for _ in range(self.updates))

    def shares(self, n: int) -> tuple[Tensor, ...]:
        """The numbers 0 to n - 1 in random order, a share for each of `updates` optimizer steps. Raises ValueError if a
        share would be empty."""
        if n < self.updates:
            raise ValueError(
                f"updates is {self.updates}, and a training step of {type(self).__name__} has {n} samples or pairs to "
                f"share out: set updates to {n} or less, or a larger --data.batch_size."
            )
        return torch.randperm(n).tensor_split(self.updates)

    @torch.no_grad()
    def draw_latents(self, rows: dict, hooks: Sequence[Hook] = ()) -> Tensor:
        """Latents (N, ...) of rows {"prompt", "columns"}, sampled with the active weights, `minibatch` at a time."""
        rows, n = {"columns": rows.get("columns", {}), "prompt": rows["prompt"]}, len(rows["prompt"])
        parts = [select_rows(rows, part.tolist()) for part in torch.arange(n).split(self.minibatch)]
        draw = lambda part: self.rollout(self.policy, part["prompt"], columns=part["columns"], hooks=hooks).x
        return torch.cat([draw(part) for part in parts])

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Context for one backward of an accumulated optimizer step: under DDP, gradients are synchronised only when
        `last` is true."""
        return nullcontext() if last or self.trainer.world_size == 1 else self.trainer.strategy.block_backward_sync()

    def training_step(self, batch: dict, batch_idx: int) -> None:
        self.check(batch)
        optimizer = self.optimizers()
        for minibatches in self.optimizer_steps(self.collect(batch)):
            optimizer.zero_grad()
            total = 0.0
            for i, m in enumerate(minibatches, 1):
                loss = self.batch_loss(m) if m else self.zero_loss()
                self.require_finite(loss, m["prompt"] if m and "prompt" in m else batch["prompt"])
                with self.gradient_sync(last=i == len(minibatches)):
                    self.manual_backward(loss)
                total += loss.detach()
            optimizer.step()
            self.log_mean("train/loss", total, 1)
        if scheduler := self.lr_schedulers():
            scheduler.step()
        if self.refresh_every and (self.batch_number + 1) % self.refresh_every == 0:
            self.policy.update_reference()


def repeat_rows(batch: dict, k: int) -> dict:
    """Prompts and columns of a batch, each row k times: a a b b."""
    rows = {"prompt": batch["prompt"], "columns": batch.get("columns", {})}
    return select_rows(rows, [i for i in range(len(batch["prompt"])) for _ in range(k)])


def tile_rows(batch: dict, k: int) -> dict:
    """Prompts and columns of a batch, the whole batch k times: a b a b."""
    rows = {"prompt": batch["prompt"], "columns": batch.get("columns", {})}
    return concatenate([rows] * k)
