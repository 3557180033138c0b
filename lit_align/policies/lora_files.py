"""LoRA files of diffusers or kohya, from which a policy starts, or which it keeps beside its own adapter."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.policies.adapters import Full, LoRA

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

OTHER_KINDS = {"dora_scale": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "lora_mid": "LoCon with lora_mid"}


def start_from(policy: "Policy", lora: str) -> None:
    """Prepares the policy's adapter, starting from a LoRA file: an adapter LoRA trains it further, with its scale
    alpha / rank kept; before any other adapter it is added to the weights. Raises ValueError if the file is for another
    model, adapts other layers than the adapter, or has another rank."""
    where = locate(lora)
    names = check_keys(policy, lora, where)
    policy.pipe.load_lora_weights(str(where), adapter_name="file")
    layers = take(policy.denoiser)
    if lost := names ^ layers.keys():
        raise ValueError(f"lora: {lora} adapts {min(lost)} in a way that diffusers does not read.")
    if isinstance(policy.adapter, LoRA):
        policy.pipe.unload_lora_weights()
        train_further(policy, lora, layers)
        return
    parts = {name: part for name in policy.pipe._lora_loadable_modules if (part := policy.pipe.components.get(name))}
    for part in parts.values():
        part.float()
    policy.pipe.fuse_lora(components=list(parts))
    policy.pipe.unload_lora_weights()
    for part in parts.values():
        keep = part is policy.denoiser and isinstance(policy.adapter, Full)  # which trains float32 weights
        part.to(torch.float32 if keep else policy.dtype).requires_grad_(False)
    policy.adapter.prepare(policy)


def attach(policy: "Policy", lora: str, name: str) -> None:
    """Keeps a LoRA file as a frozen adapter of that name beside the policy's own; ValueError as in `start_from`."""
    where = locate(lora)
    check_keys(policy, lora, where)
    policy.pipe.load_lora_weights(str(where), adapter_name=name)
    for key, p in policy.denoiser.named_parameters():
        if f".{name}." in key:
            p.data = p.data.float()
    policy.adapter.use(policy.denoiser, "default")


def locate(lora: str) -> Path:
    """The safetensors file: itself, or the one in a folder."""
    where = Path(find(lora))
    if where.is_dir():
        files = sorted(where.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(f"lora: {lora} holds {len(files)} safetensors files; name the file.")
        where = files[0]
    if not where.is_file():
        raise ValueError(f"lora: there is no file or folder {lora}.")
    if where.suffix != ".safetensors":
        raise ValueError(f"lora: {lora} is no safetensors file.")
    return where


def read_keys(lora: str, where: Path) -> list[str]:
    """Names of a file's tensors."""
    try:
        with safe_open(where, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"lora: {lora} cannot be read: {error}.") from error


def check_keys(policy: "Policy", lora: str, where: Path) -> set[str]:
    """The layers of the denoiser that the file adapts. Raises ValueError unless every tensor of the file adapts a layer
    that the model has, in its shape."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
    from diffusers.loaders.lora_base import LoraBaseMixin
    from diffusers.utils import convert_unet_state_dict_to_peft

    raw = read_keys(lora, where)
    for mark, kind in OTHER_KINDS.items():
        if key := next((key for key in raw if mark in key), None):
            raise ValueError(f"lora: {lora} is a {kind} ({key}), and only plain LoRA is read.")
    if not isinstance(policy.pipe, LoraBaseMixin):
        raise ValueError(f"lora: diffusers loads no LoRA into a {policy.pipeline_class}.")
    model, xl = f"a {policy.pipeline_class}", isinstance(policy.pipe, StableDiffusionXLLoraLoaderMixin)
    try:  # kohya numbers the blocks of SDXL as its authors did, which takes the UNet's config to read
        options = {"unet_config": policy.denoiser.config} if xl else {}
        state = policy.pipe.lora_state_dict(str(where), **options)
    except (ValueError, KeyError, IndexError) as error:  # keys that diffusers cannot rename
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"lora: {lora} is no LoRA of {model}, or has unknown keys: {said}") from error
    state = state[0] if isinstance(state, tuple) else state
    if policy.denoiser_name == "unet" and len(state) != sum(not key.endswith(".alpha") for key in raw):
        raise ValueError(f"lora: {lora} has keys of two kinds, of which diffusers reads one alone.")
    of_text = [key for key in state if key.startswith("text_encoder")]
    if of_text and isinstance(policy.adapter, LoRA):
        raise ValueError(
            f"lora: {lora} adapts the text encoder too ({of_text[0]}), which adapter LoRA does not train: use adapter "
            "Full, or a file that adapts the denoiser alone."
        )
    prefix = f"{policy.denoiser_name}."
    if unknown := [key for key in state if not key.startswith((prefix, "text_encoder"))]:
        raise ValueError(f"lora: {lora} is no LoRA of {model}: it has the unknown key {unknown[0]}.")
    own = {key.removeprefix(prefix): w for key, w in state.items() if key.startswith(prefix)}
    if not own:
        raise ValueError(f"lora: {lora} adapts nothing of the {policy.denoiser_name} of {model}.")
    if "lora_A" not in next(iter(own)):
        own = convert_unet_state_dict_to_peft(own)
    for key, w in own.items():
        check_layer(policy, lora, key, w)
    return {key.rsplit(".lora_", 1)[0] for key in own}


def check_layer(policy: "Policy", lora: str, key: str, w: Tensor) -> None:
    """Checks one tensor, by peft's name `<layer>.lora_A.weight` or `<layer>.lora_B.weight`."""
    match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key)
    layer = dict(policy.denoiser.named_modules()).get(match[1]) if match else None
    layer = getattr(layer, "base_layer", layer)  # under an adapter of the policy's own
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ValueError(f"lora: {lora} adapts {key}, which this {policy.pipeline_class} has not: another base model?")
    taken, given = (
        (layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else (layer.in_channels, layer.out_channels)
    )
    found, wanted = (w.shape[1], taken) if match[2] == "A" else (w.shape[0], given)
    if found != wanted:
        raise ValueError(
            f"lora: {lora} has {found} channels in {key} where this {policy.pipeline_class} has {wanted}: it was "
            "trained on another base model."
        )


def take(denoiser: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> A (r, ...) and B (..., r) of the adapter "file", float32, with its scale multiplied into B."""
    from peft.tuners.lora import LoraLayer

    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, LoraLayer) and "file" in m.lora_A}
    weights = lambda m: (m.lora_A["file"].weight, m.lora_B["file"].weight * m.scaling["file"])
    return {n: tuple(w.detach().float().clone() for w in weights(m)) for n, m in layers.items()}


@torch.no_grad()
def train_further(policy: "Policy", lora: str, layers: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Attaches the adapter, to the file's layers unless it names others, and sets it to the file's weights."""
    adapter = policy.adapter
    for name, (a, _) in layers.items():
        if len(a) != adapter.rank:
            raise ValueError(
                f"lora: {lora} has rank {len(a)} in {name} and the adapter has rank {adapter.rank}: set "
                f"policy.adapter.rank {len(a)}, or adapter Full."
            )
    adapter.target_modules = adapter.target_modules or "|".join(re.escape(name) for name in layers)
    adapter.prepare(policy)
    for name, (a, b) in layers.items():
        layer = policy.denoiser.get_submodule(name)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            raise ValueError(f"lora: {lora} adapts {name}, which target_modules leaves out: leave target_modules out.")
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b / layer.scaling["default"])
