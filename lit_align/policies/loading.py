"""Loading of a diffusers pipeline from a folder or the hub; safetensors only, unless pickles are trusted."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lit_align.paths import find
from lit_align.policies.adapters import LoRA

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts that no policy reads


def load_pipeline(
    policy: "Policy", pretrained: str, *, quantize=None, vae=None, variant=None, revision=None, allow_pickle=False
):
    """The pipeline of a policy's family, with weights in the policy's dtype; the arguments are Policy's."""
    if pretrained == "tiny":
        return tiny_pipeline(policy)
    where = find(pretrained)
    refuse_file(policy, pretrained, where)
    source = {
        "variant": variant,
        "revision": revision,
        "dtype": policy.dtype,
        "use_safetensors": not allow_pickle,
    }
    try:
        pipe = from_pretrained(policy, pretrained, where, source, quantize, vae)
    except OSError as error:
        raise ValueError(why(pretrained, where, revision, variant, error)) from error
    refuse_meta(pipe, pretrained)
    if policy.dtype == torch.float16 and pipe.vae.config.get("force_upcast"):
        pipe.vae.float()  # this VAE overflows in float16
    return pipe


def tiny_pipeline(policy: "Policy"):
    """A tiny pipeline of the family with random weights, the same every time."""
    from lit_align.policies import tiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = getattr(tiny, policy.pipeline_class)()
    return pipe if policy.dtype == torch.float32 else pipe.to(policy.dtype)


def from_pretrained(policy: "Policy", pretrained: str, where: str, source: dict, quantize: str | None, vae: str | None):
    """Loads a folder or a hub repository, without the parts that no policy reads."""
    import diffusers

    pipeline = getattr(diffusers, policy.pipeline_class)
    index = pipeline.load_config(where, revision=source["revision"])
    refuse_family(policy, pretrained, index)
    parts = {name: None for name, value in index.items() if value in ([None, None], (None, None))}
    parts |= {name: None for name in policy.left_out}
    parts |= {name: None for name in UNUSED if name in index}
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = False
    if vae:
        other = {"dtype": source["dtype"], "use_safetensors": source["use_safetensors"]}
        parts["vae"] = load_vae(getattr(diffusers, index["vae"][1]), vae, other)
    if quantize:
        model = getattr(diffusers, index[policy.denoiser_name][1])
        parts[policy.denoiser_name] = load_quantized(policy, model, where, quantize, source)
    return pipeline.from_pretrained(where, **parts, **source)


def load_vae(vae_class, vae: str, source: dict) -> nn.Module:
    """Another VAE of the class that the pipeline has."""
    try:
        return vae_class.from_pretrained(find(vae), **source)
    except OSError as error:
        raise ValueError(f"vae: {vae} is neither a folder with a {vae_class.__name__} nor a hub id of one.") from error


def load_quantized(policy: "Policy", model_class, where: str, quantize: str, source: dict) -> nn.Module:
    """The frozen denoiser in 8 or 4 bits (bitsandbytes)."""
    from diffusers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise ValueError(f"quantize: {quantize} needs a CUDA GPU; on a CPU leave it out.")
    if not isinstance(policy.adapter, LoRA):
        raise ValueError(f"quantize: {quantize} freezes the denoiser; train it through adapter: LoRA.")
    bits = {
        "int8": {"load_in_8bit": True},
        "int4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": policy.dtype},
    }
    config = BitsAndBytesConfig(**bits[quantize])
    return model_class.from_pretrained(where, subfolder=policy.denoiser_name, quantization_config=config, **source)


def override_scheduler(pipe, options: dict | None) -> None:
    """Replaces options of the pipeline's scheduler; `_class_name` makes it one of another class."""
    import diffusers

    if not options:
        return
    config = {**pipe.scheduler.config, **options}
    config.pop("_use_default_values", None)  # with it, diffusers would take its defaults for options given here
    name = options.get("_class_name", type(pipe.scheduler).__name__)
    scheduler = getattr(diffusers, name, None)
    if scheduler is None:
        raise ValueError(f"policy.scheduler: diffusers has no scheduler {name}.")
    known = {*pipe.scheduler.config, *scheduler._get_init_keys(scheduler), "_class_name"}
    if unknown := sorted(set(options) - known):
        options = sorted(key for key in known if key[0] != "_" and key not in ("self", "kwargs"))
        raise ValueError(f"policy.scheduler: {name} has no option {unknown[0]}; it has {', '.join(options)}.")
    pipe.register_modules(scheduler=scheduler.from_config(config))


# Refusals, each in one sentence


def refuse_file(policy: "Policy", pretrained: str, where: str) -> None:
    """Refuses what is one file."""
    if pretrained.endswith(".gguf"):
        raise ValueError(
            f"{pretrained} is a GGUF file, whose quantized weights are not read; give the folder or hub id of the "
            "model that it was made from, with quantize: int4 to save memory."
        )
    if Path(where).is_file():
        raise ValueError(
            f"{pretrained} is one file; policies are loaded from a folder: convert it by diffusers' "
            f'{policy.pipeline_class}.from_single_file("{pretrained}").save_pretrained(folder), and give the folder.'
        )


def refuse_family(policy: "Policy", pretrained: str, index: dict) -> None:
    """Refuses a pipeline of another family."""
    found, wanted = index.get("_class_name"), policy.pipeline_class
    stem = wanted.removesuffix("Pipeline")
    if found not in (wanted, f"{stem}Img2ImgPipeline", f"{stem}InpaintPipeline"):
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


def refuse_sizes(policy: "Policy", pretrained: str) -> None:
    """Refuses inpainting and editing models, whose denoiser takes more than latents, and sizes that are no multiple of
    the latents' side."""
    taken, given = policy.latent_shape[0], policy.latent_channels()
    if taken != given:
        raise ValueError(
            f"{pretrained}'s denoiser takes {taken} channels, but its VAE's latents have {given}: it is an inpainting "
            "or editing model, or the VAE is another family's."
        )
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
        return f"{pretrained} is neither a folder with a diffusers pipeline nor a hub repository that can be reached."
    if "model_index.json" not in files:
        if any("lora" in Path(f).name or f.startswith("adapter_") for f in files):
            return f"{pretrained} holds a LoRA, not a model: pretrained is the model that the LoRA was trained on."
        return f"{pretrained} is not a diffusers pipeline: it has no model_index.json."
    for part in sorted(Path(f).parent.name for f in files if Path(f).name == "config.json"):
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
