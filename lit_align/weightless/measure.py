"""One step of a module whose networks have no weights: what it needs."""

import tempfile
from dataclasses import dataclass, field

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import CheckpointError

from lit_align.weightless.ledger import Ledger, Peak, records
from lit_align.weightless.stand_in import empty_like

GIB = 2**30
PRECISIONS = {"16-mixed": "bf16-mixed", "16-true": "bf16-true"}  # of one size; a CPU has no float16
SHARDED = ("weights", "gradients", "optimizer", "reference")  # by FSDP, of the denoiser
STATE_8BIT = 2 + 8 / 256  # bytes of a parameter: two moments in 8 bits, and a number for each block of 256


class Done(Exception):
    """The step is over."""


@dataclass
class Measured:
    """What a step of a configuration needs on each device."""

    name: str
    trained: int  # parameters
    frozen: int
    parts: dict[str, int]  # network -> its parameters
    peaks: dict[str, Peak]
    flops: float  # of a batch, on a device
    batches: int = 1  # of an optimizer step
    steps: int = 1  # optimizer steps of a batch
    rows: int = 0  # of a batch
    uncounted: list[str] = field(default_factory=list)  # rewards of which small ones stood in


class Step(L.Callback):
    """Makes the state of a run in the middle of training, and ends after one batch.

    Args:
        ledger: what counts.
        accumulates: whether gradients of an earlier batch are there.
        ema: whether an average of the trained weights is kept.
    """

    def __init__(self, ledger: Ledger, accumulates: bool, ema: bool):
        self.ledger, self.accumulates, self.ema = ledger, accumulates, ema
        self.steps, self.rows = 1, 0

    def setup(self, trainer, module, stage) -> None:
        data = trainer.datamodule
        if stage == "fit" and hasattr(data.train, "select"):
            n = max(data.batch_size, len(data.train))  # few rows ship
            data.train = data.train.select([i % len(data.train) for i in range(n)])

    def on_train_start(self, trainer, module) -> None:
        self.trained = [p for p in module.parameters() if p.requires_grad]
        assign(self.ledger, module)
        if self.ema:
            self.average = [empty_like(p) for p in self.trained]
            for p in self.average:
                self.ledger.add(p, "weights")
        for optimizer in trainer.optimizers:
            prime(self.ledger, optimizer)
        self.gradients(True)  # of the last step, until the loop removes them after the next forward
        self.ledger.reset()

    def gradients(self, there: bool) -> None:
        for p in self.trained:
            p.grad = empty_like(p) if there else None
            if there:
                self.ledger.add(p.grad, "gradients")

    def on_before_backward(self, trainer, module, loss) -> None:
        if self.accumulates and all(p.grad is None for p in self.trained):  # the loop has removed them
            self.gradients(True)

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.ledger.purpose = "optimizer"  # of what the step allocates; see `prime`

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.steps, self.rows = max(1, trainer.global_step), len(batch["prompt"])
        raise Done

    def on_predict_start(self, trainer, module) -> None:
        assign(self.ledger, module)
        self.ledger.reset()

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.rows = len(batch["prompt"])
        raise Done


def assign(ledger: Ledger, module: L.LightningModule) -> None:
    """Says of every weight what it is for."""
    from lit_align.rewards.reward import Reward

    policy = module.policy
    for part in module.modules():
        if isinstance(part, Reward):
            for p in part.parameters():
                ledger.add(p, "reward")
    kept = tuple(f".{name}." for name in policy.versions.names)
    for name, p in module.named_parameters():
        if name.startswith("policy."):
            other = name.startswith("policy._frozen.") or (kept and any(k in name for k in kept))
            ledger.add(p, "reference" if other else "weights")
        elif p.untyped_storage()._cdata not in ledger._storages or p.requires_grad:
            ledger.add(p, "weights")
    own = {id(p) for p in policy.parameters()}
    for part in policy.pipe.components.values():
        if isinstance(part, nn.Module):
            for p in part.parameters():
                if id(p) not in own:
                    ledger.add(p, "encoders")


def prime(ledger: Ledger, optimizer) -> None:
    """Makes an optimizer's state as it is after a step, and gives torch's optimizers the form that they have on a
    GPU."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if hasattr(inner, "init_state"):  # bitsandbytes: its kernels need values
        inner.check_overrides()
        for g, group in enumerate(inner.param_groups):
            for i, p in enumerate(group["params"]):
                inner.init_state(group, p, g, i)
        inner.step = lambda closure=None: (closure and closure(), setattr(ledger, "purpose", "samples"))[0]
    else:
        for group in inner.param_groups:
            for p in group["params"]:
                p.grad = empty_like(p)
        if ledger.like_cuda and "foreach" in inner.defaults:
            for group in inner.param_groups:
                group["foreach"] = True if group["foreach"] is None else group["foreach"]
        inner.step()
        inner.register_step_post_hook(lambda *_: setattr(ledger, "purpose", "samples"))
    for state in inner.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                ledger.add(value, "optimizer")


def scenarios(module: L.LightningModule, devices: int) -> dict:
    """Bytes of a device: as it is; with DDP's buckets; with an 8-bit AdamW; sharded over the devices."""
    policy = module.policy
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    size = lambda part: sum(p.nbytes for p in part.parameters())
    blocks = sorted((size(b) for b in policy.blocks(policy.denoiser)), reverse=True)
    rest = size(policy.denoiser) - sum(blocks)
    gathered = rest + sum(blocks[:2])  # what lies outside of blocks, the block at work and the next one
    buckets = trained and devices > 1  # DDP's, as large as the gradients
    replicated = lambda live: {**live, "gradients": live["gradients"] * (2 if buckets else 1)}
    shares = lambda live: {k: v / devices if k in SHARDED else v for k, v in live.items()}
    sharded = lambda live: shares(live) | {"weights": live["weights"] / devices + gathered}
    return {
        "given": replicated,
        "8-bit": lambda live: replicated(live) | {"optimizer": trained * STATE_8BIT},
        "FSDP": sharded,
        "8-bit, FSDP": lambda live: sharded(live) | {"optimizer": trained * STATE_8BIT / devices},
    }


def measure(module, trainer, datamodule, devices: int, like_cuda: bool, ema: bool, name: str = "as given") -> Measured:
    """Runs one batch of a module: of training, or of prediction if it trains nothing."""
    ledger = Ledger(scenarios(module, devices), records(like_cuda, devices), like_cuda)
    trains = is_overridden("training_step", module)
    accumulate = trainer.accumulate_grad_batches if trains and module.automatic_optimization else 1
    step = Step(ledger, accumulate > 1, ema)
    datamodule.train = datamodule.val = None
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "precision": PRECISIONS.get(trainer.precision, trainer.precision),
        "max_steps": 1,
    }
    if trains and module.automatic_optimization:
        options |= {"gradient_clip_val": trainer.gradient_clip_val}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "inference_mode": False}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    with tempfile.TemporaryDirectory() as folder, ledger:
        runner = L.Trainer(**options, **quiet, callbacks=[step], default_root_dir=folder)
        try:
            (runner.fit if trains else runner.predict)(module, datamodule=datamodule)
        except Done:
            pass
        except CheckpointError as error:
            raise ValueError(
                f"there is no estimate of {type(module).__name__} yet: its step computes sampling again in backward."
            ) from error
    parts = {
        key: sum(p.numel() for p in part.parameters())
        for key, part in module.policy.pipe.components.items()
        if isinstance(part, nn.Module)
    }
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.policy.denoiser.parameters() if not p.requires_grad)
    cost = ledger.peaks, ledger.flops, accumulate, step.steps, step.rows
    return Measured(name, trained, frozen, parts, *cost, uncounted(module))


def uncounted(module: nn.Module) -> list[str]:
    """The rewards that load published weights and were given small random ones."""
    from lit_align.rewards.reward import Reward

    small = lambda part: not any(isinstance(p, FakeTensor) for p in part.parameters())
    found = [p for p in module.modules() if isinstance(p, Reward) and "`" in p.artefact and small(p)]
    return sorted({type(part).__name__ for part in found})
