"""`python -m lit_align estimate`: what a recipe needs, from its networks' shapes alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_align.callbacks import EMA
from lit_align.paths import find
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.published import WEIGHTLESS
from lit_align.tools import export
from lit_align.weightless.measure import Measured, measure
from lit_align.weightless.report import report

LOADED = ("pretrained", "checkpoint", "lora", "vae")  # what a policy or a reward loads


@dataclass
class Chip:
    """GiB that a program can have (of what the driver shows), and bf16 TFLOP/s without sparsity."""

    memory: float
    tflops: float


CHIPS = {  # NVIDIA's data sheets: H200, H100 SXM, A100 80 GB SXM, GeForce RTX 4090 (float32 accumulation)
    "h200": Chip(139.8, 989.4),
    "h100": Chip(79.2, 989.4),
    "a100": Chip(79.2, 312.0),
    "4090": Chip(23.5, 165.2),
    "cpu": Chip(float("inf"), float("nan")),
}


class Trainer(export.Trainer):
    """Lightning's Trainer with the commands `export` and `estimate`."""

    def estimate(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        chip: str = "h200",
        devices: int | None = None,
        utilisation: float = 0.4,
        fsdp: bool | None = None,
        given_only: bool = False,
    ) -> list[Measured]:
        """Says what a recipe needs before any weight is loaded: parameters, memory of each device, operations, hours.

        Needs no GPU, no weights and no network. The method's own step runs on networks of full size whose tensors have
        shapes and no values; the table says how it is with and without LoRA and gradient checkpointing, with an 8-bit
        optimizer and under FSDP. Not counted: CUDA's own 0.5 to 1 GiB, the allocator's gaps, and cuDNN's work space.

        Args:
            model: any method.
            datamodule: its data, of which a few rows that ship stand in for the rows.
            chip: h200, h100, a100, 4090 or cpu (by the CPU's rules of autocast).
            devices: how many share the recipe (default: the recipe's).
            utilisation: share of the chip's bf16 operations that a run achieves.
            fsdp: whether the denoiser is sharded over the devices (default: as the recipe's strategy says).
            given_only: leave out the recipe's variants.
        """
        if chip not in CHIPS:
            raise ValueError(f"chip is {chip}: give {', '.join(CHIPS)}.")
        if not 0 < utilisation <= 1:
            raise ValueError(f"utilisation is {utilisation}; it must lie in (0, 1].")
        run = {"trainer": self, "datamodule": datamodule, "devices": devices or 1, "like_cuda": chip != "cpu"}
        ema = any(isinstance(c, EMA) for c in self.callbacks)
        found = [measure(model, ema=ema, **run)]
        for name, changes in variants(model) if not given_only else ():
            variant = instantiate_module(type(model), changed(dict(model.hparams), changes))
            found.append(measure(variant, ema=ema, name=name, **run))
        self.estimated = found
        print("\n".join(report(found, CHIPS[chip], chip, devices or 1, utilisation, bool(fsdp), self.max_steps)))
        return found

    @staticmethod
    def without_weights(config) -> None:
        """Changes the parsed configuration of `estimate`: networks without weights, rows that ship, one process on the
        CPU."""
        trainer = config.trainer
        if config.devices is None:
            config.devices = count(trainer.devices) * trainer.num_nodes
        if config.fsdp is None:
            config.fsdp = "ModelParallelStrategy" in str(getattr(trainer.strategy, "class_path", trainer.strategy))
        trainer.update(Namespace(accelerator="cpu", devices=1, num_nodes=1, strategy="auto", logger=False))
        trainer.update(Namespace(enable_progress_bar=False, enable_model_summary=False))
        hollow(config.model)
        data = config.data.init_args
        data["smoke"], data["num_workers"] = True, 0
        for name in ("encode_once", "buckets"):
            if data.get(name):
                data[name] = False


def count(devices) -> int:
    """Devices of a Trainer's option; 1 where Lightning chooses."""
    if isinstance(devices, list):
        return len(devices)
    devices = str(devices)
    return max(1, len(devices.split(","))) if "," in devices else int(devices) if devices.isdecimal() else 1


def hollow(config) -> None:
    """Takes the weights from whatever in a model's config loads some."""
    from lit_align.cli_errors import subclasses
    from lit_align.policies.policy import Policy
    from lit_align.rewards.blip import BLIPReward
    from lit_align.rewards.clip import CLIPReward

    full = {c.__name__: c for base in (Policy, CLIPReward, BLIPReward) for c in (base, *subclasses(base))}
    parts = list(config.values()) if isinstance(config, dict) else list(vars(config).values())
    name = str(config.get("class_path", "")).rsplit(".", 1)[-1]
    arguments = config.get("init_args")
    if arguments is not None:
        for key in LOADED:
            given = arguments.get(key)
            whole = key == "pretrained" and name in full
            if not isinstance(given, str) or (key == "vae" and name in full):
                continue
            if not whole and Path(find(given)).exists():
                continue  # small files of Shapes, which are run as they are
            arguments[key] = f"{WEIGHTLESS}{given}" if whole else None if key != "pretrained" else "tiny"
    for part in parts:
        for value in part if isinstance(part, list) else [part]:
            if isinstance(value, Namespace | dict):
                hollow(value)


def variants(model: L.LightningModule) -> list[tuple[str, dict[str, Any]]]:
    """Name -> changed arguments of the policy: the other adapter, and with gradient checkpointing on and off."""
    policy = model.policy
    if not is_overridden("training_step", model) or not isinstance(policy.adapter, Full | LoRA):
        return []
    on = bool(getattr(policy.denoiser, "is_gradient_checkpointing", False))
    other = {"class_path": "lit_align.policies.adapters." + ("LoRA" if isinstance(policy.adapter, Full) else "Full")}
    names = {"adapter": other["class_path"].rsplit(".", 1)[-1]}
    checkpointing = {"gradient_checkpointing": not on}
    label = f"{'no ' if on else ''}checkpointing"
    found = [(label, checkpointing), (names["adapter"], {"adapter": other})]
    return [*found, (f"{names['adapter']}, {label}", {"adapter": other} | checkpointing)]


def changed(hparams: dict, changes: dict[str, Any]) -> dict:
    """The hyperparameters with other arguments of the policy."""
    policy = hparams["policy"]
    hparams.pop("_instantiator", None)
    return hparams | {"policy": policy | {"init_args": policy["init_args"] | changes}}
