"""Saving of a policy as what plain diffusers loads, and sharding of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_align.policies.adapters import LoRA

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy


def save(policy: "Policy", folder: str) -> None:
    """Writes LoRA weights for `load_lora_weights`, or a whole pipeline for `from_pretrained`. Under FSDP2 all ranks
    call it: weights are gathered and rank 0 writes."""
    if isinstance(policy.adapter, LoRA):
        return save_lora(policy, folder)
    state = gathered(policy)
    if not _writes():
        return
    if not _sharded(policy):
        policy.pipe.save_pretrained(folder)
        return
    whole = type(policy.denoiser).from_config(policy.denoiser.config)
    whole.load_state_dict(state)
    setattr(policy.pipe, policy.denoiser_name, whole)
    policy.pipe.save_pretrained(folder)
    setattr(policy.pipe, policy.denoiser_name, policy.denoiser)


def save_lora(policy: "Policy", folder: str) -> None:
    """Writes the adapter "default" to `<folder>/pytorch_lora_weights.safetensors`; its header has rank and alpha."""
    from diffusers.loaders.lora_base import LoraBaseMixin
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    state = gathered(policy)
    if not _writes():
        return
    layers = get_peft_model_state_dict(policy.denoiser, state_dict=state)
    metadata = policy.denoiser.peft_config["default"].to_dict()
    if isinstance(policy.pipe, LoraBaseMixin):
        name = f"{policy.denoiser_name}_lora"
        if policy.denoiser_name == "unet":  # of transformers, diffusers reads peft's names
            layers = convert_state_dict_to_diffusers(layers)
        policy.pipe.save_lora_weights(folder, **{f"{name}_layers": layers, f"{name}_adapter_metadata": metadata})
        return
    # for `pipe.transformer.load_lora_adapter(folder, prefix=None, use_safetensors=True)`
    header = {"lora_adapter_metadata": metadata}
    LoraBaseMixin.write_lora_layers(layers, folder, True, "pytorch_lora_weights.safetensors", None, True, **header)


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
