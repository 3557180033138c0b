"""LoRA scaling: between the base model and the tuned one (DRaFT, arXiv 2309.17400, section 4.2)."""

from contextlib import contextmanager

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import nn


def lora_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a module that carry a peft LoRA."""
    from peft.tuners.lora import LoraLayer

    return [m for m in module.modules() if isinstance(m, LoraLayer)]


@contextmanager
def scaled(module: nn.Module, scale: float):
    """Inside, every LoRA contributes `scale` times what it does outside: W + scale (alpha / r) B A."""
    layers = lora_layers(module)
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update({name: value * scale for name, value in layer.scaling.items()})
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before):
            layer.scaling.update(scaling)


@torch.no_grad()
def bake(module: nn.Module, scale: float) -> None:
    """Multiplies every LoRA's B by `scale`, so that an export carries it."""
    for layer in lora_layers(module):
        for b in layer.lora_B.values():
            b.weight.mul_(scale)


class LoRAScaling(L.Callback):
    """Samples with the adapter at a part of its strength, which trades reward against fidelity without retraining.

    Args:
        scale: strength in validation, test and predict; 0 is the base model, 1 the tuned one.
        sweep: strengths at which each validation is run once more; whatever the module logs as `val/...` is logged as
            `val_lora_<strength>/...` too.
        ramp: over this many optimizer steps the strength in training rises from 0 to 1; 0: always 1.
        bake_at_end: fold `scale` into the adapter when training ends, for the export. Where EMA is used, list it first.
    """

    def __init__(self, scale: float = 1.0, sweep: list[float] | None = None, ramp: int = 0, bake_at_end: bool = False):
        self.scale, self.sweep, self.ramp, self.bake_at_end = scale, sweep or [], ramp, bake_at_end
        self._context = None

    def on_fit_start(self, trainer, module) -> None:
        if not lora_layers(module):
            raise ValueError(
                "LoRAScaling found no LoRA layer; set the policy's adapter to LoRA or leave the callback out."
            )

    def _enter(self, module: nn.Module, scale: float) -> None:
        if scale != 1:
            self._context = scaled(module, scale)
            self._context.__enter__()

    def _leave(self) -> None:
        if self._context is not None:
            context, self._context = self._context, None
            context.__exit__(None, None, None)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._enter(module, min(1.0, trainer.global_step / self.ramp) if self.ramp else 1.0)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._leave()

    def on_validation_start(self, trainer, module) -> None:
        self._enter(module, self.scale)

    def on_validation_epoch_end(self, trainer, module) -> None:  # an average (EMA) still stands in for the weights
        self._leave()
        if trainer.sanity_checking:
            return
        for scale in self.sweep:
            with scaled(module, scale):
                for name, value in self._validate(trainer, module).items():
                    for logger in trainer.loggers:
                        logger.log_metrics(
                            {name.replace("val/", f"val_lora_{scale:g}/", 1): value}, trainer.global_step
                        )

    @torch.no_grad()
    def _validate(self, trainer, module) -> dict[str, float]:
        """The means of what the module logs over the validation batches, with its `log` listened to."""
        seen: dict[str, list] = {}
        module.log = lambda name, value, **kwargs: seen.setdefault(name, []).append(
            (float(value), kwargs.get("batch_size") or 1)
        )
        try:
            module.on_validation_start()
            loaders = (
                trainer.val_dataloaders if isinstance(trainer.val_dataloaders, list) else [trainer.val_dataloaders]
            )
            for number, loader in enumerate(loaders):
                for i, batch in zip(range(int(min(trainer.num_val_batches[number], 10**9))), loader):
                    batch = move_data_to_device(batch, module.device)
                    with trainer.precision_plugin.val_step_context():
                        module.validation_step(batch, i, *([number] if len(loaders) > 1 else []))
        finally:
            del module.log  # the method shows again
        total = lambda x: trainer.strategy.reduce(torch.tensor(float(x), device=module.device), reduce_op="sum")
        mean = lambda rows: float(total(sum(v * n for v, n in rows)) / total(sum(n for _, n in rows)))
        return {name: mean(rows) for name, rows in seen.items()}

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_exception = lambda self, *_: self._leave()

    def on_train_end(self, trainer, module) -> None:
        if self.bake_at_end:
            bake(module, self.scale)
            self.scale = 1.0  # of the baked adapter
