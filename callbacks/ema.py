"""An exponential moving average of what is trained."""

import lightning as L
import torch
from lit_align.callbacks.trainable import laid_out_like, trainable, whole, write
from torch import Tensor


class EMA(L.Callback):
    """ema <- d ema + (1 - d) theta after every `every_n_steps`-th optimizer step n, over trainable tensors only, with
    d = min(decay, (1 + n) / (10 + n)), so that an early average forgets where it started (as diffusers and Flow-GRPO
    have it). Where a batch makes k such steps (manual optimization), ema <- d^k ema + (1 - d^k) theta after the batch.

    The average stands in for the weights during validation, test and predict, and while the module saves what it
    trained (its `on_train_end`).
    Checkpoints hold both: the weights, and the average in this callback's state. Works on sharded tensors (FSDP2).

    Args:
        decay: share of the old average that is kept at each update in the end, in [0, 1).
        every_n_steps: optimizer steps between updates.
    """

    def __init__(self, decay: float = 0.9999, every_n_steps: int = 1):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1).")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be 1 or more.")
        self.decay, self.every_n_steps = decay, every_n_steps
        self.average: dict[str, Tensor] | None = None
        self.weights: dict[str, Tensor] | None = None  # theta, while the average stands in for it
        self.step = 0

    def on_train_start(self, trainer, module) -> None:
        now = trainable(module)
        if self.average is None:
            self.average = {name: p.clone() for name, p in now.items()}
        self._lay_out(now)
        self.step = trainer.global_step

    def _lay_out(self, now: dict[str, Tensor]) -> None:
        self.average = {
            name: a if type(a) is type(now[name]) and a.device == now[name].device else laid_out_like(a, now[name])
            for name, a in self.average.items()
        }

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        before, self.step = self.step, trainer.global_step
        updates = self.step // self.every_n_steps - before // self.every_n_steps
        if updates:  # none in the middle of an accumulation
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            for name, p in trainable(module).items():
                self.average[name].lerp_(p, 1 - decay**updates)

    def _stand_in(self, trainer, module) -> None:
        if self.average is not None and self.weights is None:
            now = trainable(module)
            self._lay_out(now)
            self.weights = {name: p.clone() for name, p in now.items()}
            write(self.average, module)

    def _step_back(self, trainer, module) -> None:
        if self.weights is not None:
            write(self.weights, module)
            self.weights = None

    on_validation_start = on_test_start = on_predict_start = on_train_end = _stand_in
    on_validation_end = on_test_end = on_predict_end = on_fit_end = _step_back

    def on_exception(self, trainer, module, exception) -> None:
        self._step_back(trainer, module)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        if self.weights is not None:  # saved while the average stands in: the file gets the weights
            checkpoint["state_dict"] |= {name: whole(p) for name, p in self.weights.items()}

    def state_dict(self) -> dict:
        return {"average": {name: whole(a) for name, a in (self.average or {}).items()}}

    def load_state_dict(self, state: dict) -> None:
        self.average = state["average"] or None
