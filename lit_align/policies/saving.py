"""Saving of a policy as what plain diffusers, or a program that reads kohya's LoRA files, loads; and sharding of it."""

import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_align.paths import unfinished
from lit_align.policies.adapters import LoRA

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

LORA_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "lora.safetensors"
READ_BY_COMFYUI = (  # under diffusers' names: model_lora_keys_unet of its comfy/lora.py
    "ChromaPipeline",
    "FluxPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "QwenImagePipeline",
    "StableDiffusion3Pipeline",
    "ZImagePipeline",
)
PEFT_FILE = "adapter_model.safetensors"


def save(policy: "Policy", folder: str, format: str = "diffusers", merge: bool = False) -> None:
    """Writes LoRA weights, in diffusers' or kohya's format, or a whole pipeline for `from_pretrained`. With `merge` a
    LoRA becomes part of the denoiser's weights and a whole pipeline is written; the policy cannot be trained after it.
    Under FSDP2 all ranks call it: weights are gathered and rank 0 writes."""
    if format == "kohya" and (merge or not isinstance(policy.adapter, LoRA)):
        raise ValueError("format: kohya is for LoRA weights, and a whole pipeline is written here: leave format out.")
    if isinstance(policy.adapter, LoRA) and not merge:
        return save_lora(policy, folder, format)
    if isinstance(policy.adapter, LoRA):
        fuse(policy)
    state = gathered(policy)
    if not _writes():
        return
    with complete(folder) as part:
        if not _sharded(policy):
            policy.pipe.save_pretrained(part)
            return
        whole = type(policy.denoiser).from_config(policy.denoiser.config)
        whole.load_state_dict(state)
        setattr(policy.pipe, policy.denoiser_name, whole)
        policy.pipe.save_pretrained(part)
        setattr(policy.pipe, policy.denoiser_name, policy.denoiser)


def save_lora(policy: "Policy", folder: str, format: str = "diffusers") -> None:
    """Writes the adapter "default" for diffusers (see `write_diffusers`), or in kohya's format to
    `<folder>/lora.safetensors`. The scale alpha / rank is multiplied into B, so that alpha = rank in the file: programs
    that do not read alpha from its header take that value."""
    from peft import get_peft_model_state_dict

    state = gathered(policy)
    if not _writes():
        return
    layers = get_peft_model_state_dict(policy.denoiser, state_dict=state)
    config = policy.denoiser.peft_config["default"]
    layers = {name: w * (config.lora_alpha / config.r) if ".lora_B." in name else w for name, w in layers.items()}
    with complete(folder) as part:
        if format == "kohya":
            save_file(kohya(policy, layers), part / KOHYA_FILE, {"format": "pt"})
        else:
            write_diffusers(policy, layers, {**config.to_dict(), "lora_alpha": config.r}, part)


def write_diffusers(policy: "Policy", layers: dict[str, Tensor], metadata: dict, folder: Path) -> None:
    """Writes a LoRA for `pipe.load_lora_weights(folder)`; for a pipeline without that method, for
    `pipe.transformer.load_lora_adapter(folder, prefix=None, use_safetensors=True)`; for a transformer without that, for
    `peft.PeftModel.from_pretrained(pipe.transformer, folder)`."""
    from diffusers.loaders import PeftAdapterMixin
    from diffusers.loaders.lora_base import LoraBaseMixin
    from diffusers.utils import convert_state_dict_to_diffusers

    if isinstance(policy.pipe, LoraBaseMixin) and isinstance(policy.denoiser, PeftAdapterMixin):
        name = f"{policy.denoiser_name}_lora"
        if policy.denoiser_name == "unet":  # of transformers, diffusers reads peft's names
            layers = convert_state_dict_to_diffusers(layers)
        policy.pipe.save_lora_weights(folder, **{f"{name}_layers": layers, f"{name}_adapter_metadata": metadata})
        return
    if not isinstance(policy.denoiser, PeftAdapterMixin):
        config = policy.denoiser.peft_config["default"]
        replace(config, lora_alpha=config.r).save_pretrained(folder)
        save_file({f"base_model.model.{name}": w.contiguous() for name, w in layers.items()}, folder / PEFT_FILE)
        return
    header = {"lora_adapter_metadata": metadata}
    LoraBaseMixin.write_lora_layers(layers, str(folder), True, LORA_FILE, None, True, **header)


def kohya(policy: "Policy", layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's LoRA under the names of kohya's sd-scripts: `lora_unet_<layer>.lora_down.weight`, `.lora_up.weight` and
    `.alpha`. Takes peft's names, with alpha = rank."""
    if policy.denoiser_name != "unet":
        loads = "loads" if policy.pipeline_class in READ_BY_COMFYUI else "is not known to load"
        raise ValueError(
            f"format: kohya names the layers of a UNet, and a {policy.pipeline_class} has none: use format: diffusers, "
            f"which ComfyUI {loads} for this model."
        )
    out = {}
    for name, w in layers.items():
        layer, part = name.removesuffix(".weight").rsplit(".lora_", 1)
        key = "lora_unet_" + layer.replace(".", "_")
        out[f"{key}.{'lora_down' if part == 'A' else 'lora_up'}.weight"] = w.contiguous()
        if part == "A":
            out[f"{key}.alpha"] = torch.tensor(float(len(w)))
    return out


def fuse(policy: "Policy") -> None:
    """Adds the adapter "default" to the denoiser's weights, in float32, and removes all adapters."""
    from diffusers.utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    denoiser = policy.denoiser
    dtypes = {name: p.dtype for name, p in denoiser.named_parameters() if ".lora_" not in name}
    if any(not dtype.is_floating_point for dtype in dtypes.values()):
        raise ValueError("a quantized denoiser takes no merge: load the policy without quantize.")
    denoiser.float()
    policy.adapter.use(denoiser, "default")
    for layer in [m for m in denoiser.modules() if isinstance(m, BaseTunerLayer)]:
        layer.merge(adapter_names=["default"])
    recurse_remove_peft_layers(denoiser)
    del denoiser.peft_config
    before = {name.replace(".base_layer.", "."): dtype for name, dtype in dtypes.items()}
    for name, p in denoiser.named_parameters():
        p.data = p.data.to(before[name])


@contextmanager
def complete(folder: str | Path):
    """Yields an empty folder beside `folder`. After the block its files replace those of the same names in `folder`,
    each in one step, and a pipeline's model_index.json last; other files stay. A full disk or a killed writer leaves no
    part of a file and nothing that loads as half a pipeline."""
    folder, part = Path(folder), unfinished(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        files = sorted(part.rglob("*"), key=lambda file: file.name == "model_index.json")
        for file in filter(Path.is_file, files):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if (part / "model_index.json").exists():
            (folder / "model_index.json").unlink(missing_ok=True)
        for file in filter(Path.is_file, files):
            target = folder / file.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    except SafetensorError as error:
        raise OSError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def gathered(policy: "Policy") -> dict[str, Tensor]:
    """The denoiser's state_dict; under FSDP2 whole, on the CPU, on rank 0."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not _sharded(policy):
        return policy.denoiser.state_dict()
    return get_model_state_dict(policy.denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _sharded(policy: "Policy") -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(policy.denoiser, FSDPModule)


def _writes() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def shard(models: list[nn.Module], blocks: Callable[[nn.Module], list[nn.Module]], mesh) -> None:
    """Shards models over a device mesh block by block (FSDP2), those that are not sharded yet."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for model in models:
        if not isinstance(model, FSDPModule):
            for block in blocks(model):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh, reshard_after_forward=True)  # a frozen copy has no backward to do it
