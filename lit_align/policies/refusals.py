"""What cannot be loaded, said in one sentence each."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lit_align.policies.adapters import Full

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that no policy reads


def refuse_file(policy: "Policy", pretrained: str, allow_pickle: bool, quantize: str | None) -> None:
    """Refuses single files whose weights are pickled, and quantized ones that cannot be read or trained."""
    if pretrained.endswith(".gguf"):
        if find_spec("gguf") is None:
            raise ValueError(
                f"{pretrained} is a GGUF file, which is read with the package gguf: pip install gguf, or give the "
                "model that it was made from, with quantize: int4 to save memory."
            )
        if isinstance(policy.adapter, Full):
            raise ValueError(f"{pretrained} is a GGUF file, whose weights are frozen: train through adapter: LoRA.")
    elif not (pretrained.endswith((".safetensors", ".sft")) or allow_pickle):
        raise ValueError(f"{pretrained} is a pickled checkpoint; set allow_pickle: true if you trust it.")
    if quantize:
        raise ValueError(f"quantize: {quantize} is for folders and hub ids; {pretrained} is one file.")


def refuse_family(policy: "Policy", pretrained: str, index: dict) -> None:
    """Refuses a pipeline of another family."""
    found, wanted = index.get("_class_name"), policy.pipeline_class
    stem = wanted.removesuffix("Pipeline")
    if found not in (wanted, *policy.made_from, f"{stem}Img2ImgPipeline", f"{stem}InpaintPipeline"):
        raise ValueError(f"{pretrained} is a {found}; {type(policy).__name__} is for a {wanted}.")
    if index.get("requires_aesthetics_score"):
        raise ValueError(f"{pretrained} is SDXL's refiner, which does not start from noise; give the base model.")


def refuse_meta(pipe, pretrained: str) -> None:
    """Refuses weights without values: diffusers only warns of them, and sampling gives NaN."""
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module):
            empty = [name for name, p in module.named_parameters() if p.is_meta]
            if empty:
                raise ValueError(
                    f"{pretrained} has no values for {len(empty)} weights of its {part} ({empty[0]}): it was saved "
                    "with LoRA adapters attached; fuse and unload them in diffusers, and save it again."
                )


def refuse_parts(policy: "Policy", pretrained: str) -> None:
    """Refuses VAEs of other classes and denoisers with inputs that the policy does not give, those of inpainting and
    editing models."""
    vae = type(policy.pipe.vae).__name__
    if vae != policy.vae_class:
        raise ValueError(f"{pretrained} has a VAE of class {vae}; {type(policy).__name__} reads an {policy.vae_class}.")
    taken, given = policy.latent_shape[0], policy.latent_channels()
    if taken != given:
        raise ValueError(
            f"{pretrained}'s denoiser takes {taken} channels, but its VAE's latents have {given}: it is an inpainting "
            "or editing model, or the VAE is another family's."
        )


def refuse_sizes(policy: "Policy") -> None:
    """Refuses sizes that are no multiple of a token's side."""
    side = policy.vae_scale_factor * policy.patch
    for size in (policy.height, policy.width):
        if size % side:
            raise ValueError(f"resolution: {size} is no multiple of {side} pixels, the side of a latent of this model.")


WEIGHTS = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)(?:-\d+-of-\d+)?(?:\.(\w+?))?(?:-\d+-of-\d+)?\.(safetensors|bin)"
)


def why(pretrained: str, where: str, revision: str | None, variant: str | None, error: Exception) -> str:
    """Why a folder or hub repository cannot be loaded, from the names of its files."""
    files = list_files(where, revision)
    if not files:
        newest = f" in revision {revision}; --model.policy.revision null takes the newest" if revision else ""
        known = "a folder with a diffusers pipeline nor a hub repository that can be reached"
        return f"{pretrained} is neither {known}{newest}."
    if "model_index.json" not in files:
        if any("lora" in Path(f).name or f.startswith("adapter_") for f in files):
            return f"{pretrained} holds a LoRA, not a model: give it as lora, and its base model as pretrained."
        return f"{pretrained} is not a diffusers pipeline: it has no model_index.json."
    parts = {Path(f).parent.name for f in files if Path(f).name == "config.json"}
    for part in sorted(parts.difference(UNUSED)):
        found = [m for f in files if Path(f).parent.name == part and (m := WEIGHTS.fullmatch(Path(f).name))]
        tensors = {m[1] for m in found if m[2] == "safetensors"}
        if variant in tensors or None in tensors:
            continue
        if tensors:
            names = " or ".join(f"variant: {name}" for name in sorted(tensors))
            return f"{pretrained}/{part} holds only a variant of its weights; set {names}."
        if found:
            return (
                f"{pretrained}/{part} has no safetensors weights; set allow_pickle: true if you trust its pickled ones."
            )
        return f"{pretrained}/{part} holds no weights."
    return f"{pretrained} cannot be loaded: {' '.join(str(error).split())}"


def list_files(where: str, revision: str | None) -> list[str]:
    """Files of a folder, or of a hub repository where it can be reached; else none."""
    if Path(where).is_dir():
        return [path.relative_to(where).as_posix() for path in Path(where).rglob("*") if path.is_file()]
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(where, revision=revision)
    except (OSError, ValueError):
        return []
