"""Loading of a pipeline from a folder, the hub or a single file; safetensors only, unless pickles are trusted."""

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn

from lit_align.paths import fetch, find
from lit_align.policies import published
from lit_align.policies.adapters import LoRA
from lit_align.policies.refusals import UNUSED, refuse_family, refuse_file, refuse_meta, why

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

SINGLE_FILES = (".safetensors", ".sft", ".ckpt", ".gguf")


def load_pipeline(
    policy: "Policy",
    pretrained: str,
    *,
    quantize: str | None,
    vae: str | None,
    variant: str | None,
    revision: str | None,
    allow_pickle: bool,
    single_file_config: str | None,
):
    """The pipeline of a policy's family, with weights in the policy's dtype; the arguments are Policy's."""
    if pretrained == "tiny":
        return tiny_pipeline(policy)
    if pretrained.startswith(published.WEIGHTLESS):
        return published.weightless_pipeline(policy, pretrained.removeprefix(published.WEIGHTLESS), vae)
    source = {"variant": variant, "revision": revision, "dtype": policy.dtype, "use_safetensors": not allow_pickle}
    where = find(pretrained)
    if Path(where).is_file() or pretrained.endswith(SINGLE_FILES):
        refuse_file(policy, pretrained, allow_pickle, quantize)
        load = from_gguf if pretrained.endswith(".gguf") else from_single_file
        pipe = load(policy, pretrained, fetch(pretrained), single_file_config, source, vae)
    else:
        if single_file_config:
            raise ValueError(f"single_file_config is for a single file, and {pretrained} is none: leave it out.")
        try:
            pipe = from_pretrained(policy, pretrained, where, source, quantize, vae)
        except OSError as error:
            raise ValueError(why(pretrained, where, revision, variant, error)) from error
    refuse_meta(pipe, pretrained)
    if policy.dtype == torch.float16 and pipe.vae.config.get("force_upcast"):
        pipe.vae.float()  # this VAE overflows in float16
    return pipe


def denoiser_of(policy: "Policy", source: str) -> nn.Module:
    """The denoiser of another pipeline of the same model, from its folder, in float32. ValueError if there is none, or
    if it is of another model."""
    folder = Path(find(source)) / policy.denoiser_name
    if not folder.is_dir():
        raise ValueError(f"there is no folder {source} with a {policy.denoiser_name}: give that of a pipeline.")
    denoiser = type(policy.denoiser).from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    shapes = lambda model: {name: p.shape for name, p in model.named_parameters()}
    if shapes(denoiser) != shapes(policy.denoiser):
        raise ValueError(f"{source} has other sizes than this {policy.pipeline_class}: give one trained from the same.")
    return denoiser.to(policy.device)


def tiny_pipeline(policy: "Policy"):
    """A tiny pipeline of the family with random weights, the same every time."""
    from lit_align.policies import tiny, tiny_images, tiny_transformers, tiny_videos

    builders = vars(tiny) | vars(tiny_transformers) | vars(tiny_images) | vars(tiny_videos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = builders[policy.pipeline_class]()
    return pipe if policy.dtype == torch.float32 else pipe.to(policy.dtype)


def from_pretrained(policy: "Policy", pretrained: str, where: str, source: dict, quantize: str | None, vae: str | None):
    """Loads a folder or a hub repository, without the parts that no policy reads."""
    import diffusers

    pipeline = getattr(diffusers, policy.pipeline_class)
    index = pipeline.load_config(where, revision=source["revision"])
    refuse_family(policy, pretrained, index)
    parts = given_parts(policy, index, source, vae) | policy.load_parts(where, source["revision"])
    if quantize:
        model = getattr(diffusers, index[policy.denoiser_name][1])
        parts[policy.denoiser_name] = load_quantized(policy, model, where, quantize, source)
    return pipeline.from_pretrained(where, **parts, **source)


def from_single_file(policy: "Policy", pretrained: str, where: str, config: str | None, source: dict, vae: str | None):
    """Loads one file with the weights of a denoiser and perhaps of encoders and VAE; configs, tokenizers and whatever
    the file lacks come from `config`, a folder or hub id of a diffusers pipeline of the family. Without it, or with a
    folder of tokenizers alone, configs are those that ship."""
    import diffusers
    from diffusers.loaders import FromSingleFileMixin
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    pipeline = getattr(diffusers, policy.pipeline_class)
    if not issubclass(pipeline, FromSingleFileMixin):
        raise ValueError(f"{pretrained} is one file; diffusers loads a {policy.pipeline_class} from folders only.")
    try:
        tokens = config and find(config)
        if config is None or (Path(tokens).is_dir() and not Path(tokens, "model_index.json").exists()):
            config, tokens = published.configs_of_file(policy, pretrained, where, tokens)
        index = pipeline.load_config(find(config))
        refuse_family(policy, config, index)
        parts = given_parts(policy, index, source, vae)
        parts |= lacking_parts(policy, where, find(config), index, parts, source)
        if tokens != find(config):
            parts |= published.tokenizers(policy, pretrained, index, tokens)
        return pipeline.from_single_file(where, config=find(config), dtype=source["dtype"], **parts)
    except SingleFileComponentError as error:
        raise ValueError(f"{pretrained} lacks a part: {error.message.splitlines()[0]}") from error
    except OSError as error:
        raise ValueError(f"single_file_config: {why(config, find(config), None, None, error)}") from error


def from_gguf(policy: "Policy", pretrained: str, where: str, config: str | None, source: dict, vae: str | None):
    """Loads a denoiser whose weights are quantized, and the rest of its pipeline from `config`, a folder or hub id."""
    import diffusers

    if config is None:
        raise ValueError(
            f"{pretrained} holds a denoiser alone: give single_file_config, a folder or hub id of a whole "
            f"{policy.pipeline_class}."
        )
    pipeline, rest = getattr(diffusers, policy.pipeline_class), find(config)
    try:
        index = pipeline.load_config(rest)
        refuse_family(policy, config, index)
        parts = given_parts(policy, index, source, vae)
        quantization = diffusers.GGUFQuantizationConfig(compute_dtype=policy.dtype)
        options = {"config": rest, "subfolder": policy.denoiser_name, "dtype": policy.dtype}
        model = getattr(diffusers, index[policy.denoiser_name][1])
        parts[policy.denoiser_name] = model.from_single_file(where, quantization_config=quantization, **options)
        return pipeline.from_pretrained(rest, **parts, **source)
    except OSError as error:
        raise ValueError(f"single_file_config: {why(config, rest, None, None, error)}") from error


def lacking_parts(policy: "Policy", where: str, config: str, index: dict, given: dict, source: dict) -> dict:
    """Text encoders and VAE that a safetensors file does not hold, loaded from the folder or hub id `config`."""
    if not where.endswith(".safetensors"):
        return {}
    with safe_open(where, "pt") as file:
        keys = list(file.keys())
    held = lambda *prefixes: any(key.startswith(prefixes) for key in keys)
    names = [] if held("cond_stage_model.", "conditioner.", "text_encoders.") else list(policy.encoder_names)
    names += [] if held("first_stage_model.", "vae.") else ["vae"]
    options = {"dtype": source["dtype"], "use_safetensors": source["use_safetensors"]}
    kinds = {name: index[name] for name in names if name not in given}
    return {
        name: getattr(import_module(library), kind).from_pretrained(config, subfolder=name, **options)
        for name, (library, kind) in kinds.items()
    }


def given_parts(policy: "Policy", index: dict, source: dict, vae: str | None) -> dict:
    """Parts of a pipeline that diffusers is not to load: absent ones, those no policy reads, and another VAE."""
    import diffusers

    parts = {name: None for name, value in index.items() if value in ([None, None], (None, None))}
    parts |= {name: None for name in policy.left_out}
    parts |= {name: None for name in UNUSED if name in index}
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = False
    if vae:
        other = {"dtype": source["dtype"], "use_safetensors": source["use_safetensors"]}
        parts["vae"] = load_vae(getattr(diffusers, index["vae"][1]), vae, other)
    return parts


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
    known = {*pipe.scheduler.config, *signature(scheduler).parameters, "_class_name"}
    if unknown := sorted(set(options) - known):
        options = sorted(key for key in known if key[0] != "_")
        raise ValueError(f"policy.scheduler: {name} has no option {unknown[0]}; it has {', '.join(options)}.")
    pipe.register_modules(scheduler=scheduler.from_config(config))
