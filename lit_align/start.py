"""What is checked before anything is loaded, and what is said when training starts."""

import os

import torch
from lightning.pytorch.accelerators import MPSAccelerator

from lit_align.data.datamodule import AlignData
from lit_align.data.order import Stream

UNITS = {("win", "lose"): "pairs", ("image",): "images", ("images",): "lists", (): "prompts"}


def missing_devices(accelerator: str, devices: int | str | list[int]) -> str | None:
    """One sentence if the Trainer's devices are not on this machine; None if they are, or if Lightning chooses them."""
    gpus, cores = torch.cuda.device_count() or int(MPSAccelerator.is_available()), os.cpu_count() or 1
    asked = count_devices(devices)
    if accelerator in ("gpu", "cuda", "mps") and not gpus:
        return (
            f"trainer.accelerator is {accelerator} and PyTorch finds no GPU on this machine: set --trainer.accelerator "
            "cpu --trainer.devices 1, or try the recipe in two small steps with --config smoke.yaml."
        )
    if accelerator == "cpu" or (accelerator == "auto" and not gpus):
        has = f"{cores} CPU core{'s' * (cores > 1)}, and each process needs one" if asked > cores else ""
        return f"trainer.devices is {devices} and this machine has {has}: set --trainer.devices 1." if has else None
    if accelerator in ("auto", "gpu", "cuda", "mps") and asked > gpus:
        return (
            f"trainer.devices is {devices} and this machine has {gpus} GPU{'s' * (gpus > 1)}: set --trainer.devices "
            f"{gpus}, or add --config one_gpu.yaml (one_gpu_online.yaml for methods that sample while they train)."
        )
    return None


def count_devices(devices: int | str | list[int]) -> int:
    """How many devices a machine must have for the Trainer's option; 0 where Lightning chooses."""
    if isinstance(devices, str):
        devices = [int(i) for i in devices.split(",") if i.strip().isdecimal()] if "," in devices else devices
    if isinstance(devices, list):
        return 1 + max(devices, default=-1)
    return int(devices) if str(devices).isdecimal() else 0


def training_amount(trainer, module, data: AlignData) -> str:
    """The rows of the training data, those of a step, and how many steps and epochs training takes."""
    devices, accumulate = trainer.world_size, trainer.accumulate_grad_batches
    _, order = data.training_order(lambda: 0, **(trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}))
    streamed, unit = isinstance(order, Stream), UNITS[data.image_keys]
    rows = f"a stream of {unit}" if streamed else f"{len(data.train):,} {unit}"
    batch, step = f"batch {data.batch_size} x {devices} device{'s' * (devices > 1)}", data.batch_size * devices
    if not module.automatic_optimization:
        limit = f"{trainer.max_steps:,} optimizer steps" if trainer.max_steps > 0 else f"{trainer.max_epochs} epochs"
        return f"{rows}, {step:,} a batch ({batch}), {limit} in all"
    text = f"{rows}, {step * accumulate:,} a step ({batch} x accumulation {accumulate})"
    if streamed:
        return text + (f", {trainer.max_steps:,} steps" if trainer.max_steps > 0 else "")
    epoch = -(-order.per_pass // accumulate)  # steps; Lightning also makes one after the last batch of an epoch
    limits = [trainer.max_steps, (trainer.max_epochs or -1) * epoch]
    steps = min((limit for limit in limits if limit > 0), default=None)
    if not steps:
        return f"{text}, {epoch:,} steps an epoch"
    return f"{text}, {steps:,} steps, {steps / epoch:,.3g} epoch{'s' * (steps != epoch)}"
