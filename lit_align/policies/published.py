"""The configs of published models that ship under configs/models: pipelines of full size without weights, and what a
single file lacks."""

import json
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn

from lit_align.paths import ROOT, find
from lit_align.policies.refusals import UNUSED
from lit_align.weightless.build import built, with_values
from lit_align.weightless.stand_in import stand_in, without_values

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

MODELS = ROOT / "configs/models"
WEIGHTLESS = "weightless:"  # before a hub id or folder: the model of its configs, without weights


@cache
def repositories() -> dict[str, Path]:
    """Hub id -> the folder with its configs."""
    files = [*MODELS.glob("*/model_index.json"), *MODELS.glob("*/config.json")]
    return {name: file.parent for file in sorted(files) for name in json.loads(file.read_text())["_repositories"]}


def configs_of(pretrained: str) -> Path:
    """The folder with the configs of a hub id or folder. Raises ValueError if they are not here."""
    where = Path(find(pretrained))
    if where.is_dir():
        return where
    if pretrained not in repositories():
        raise ValueError(
            f"the configs of {pretrained} do not ship: give a folder with its model_index.json and the config.json of "
            f"each part, or one of {', '.join(repositories())}."
        )
    return repositories()[pretrained]


def configs_of_file(policy: "Policy", pretrained: str, where: str, tokens: str | None) -> tuple[str, str]:
    """The folder with the configs of a single file's model, told by its tensors, and where its tokenizers are: `tokens`,
    or the hub id of the model."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

    needs = f"give single_file_config, a folder or hub id of a {policy.pipeline_class}."
    if not where.endswith((".safetensors", ".sft")):
        raise ValueError(f"{pretrained} is one file, with weights alone, of a model that is not told: {needs}")
    with safe_open(where, "pt") as file:
        shapes = {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}
    known = DIFFUSERS_DEFAULT_PIPELINE_PATHS[infer_diffusers_model_type(shapes)]["pretrained_model_name_or_path"]
    if known not in repositories():
        raise ValueError(f"{pretrained} is one file, with weights alone, of {known}, whose configs do not ship: {needs}")
    return str(repositories()[known]), tokens or known


def tokenizers(policy: "Policy", pretrained: str, index: dict, source: str) -> dict:
    """The tokenizers of a pipeline, from a folder or hub id. Raises ValueError if they are not there."""
    found = {}
    for name, kind in index.items():
        if not name.startswith("tokenizer") or name in policy.left_out:
            continue
        try:
            found[name] = getattr(import_module(kind[0]), kind[1]).from_pretrained(source, subfolder=name)
        except OSError as error:
            raise ValueError(
                f"{pretrained} is one file, without tokenizers, and {source} has no {name} or cannot be reached: give "
                f"single_file_config, a folder with {name}/ and whatever else its model has, or with all of its model."
            ) from error
    return found


def weightless_pipeline(policy: "Policy", pretrained: str, vae: str | None):
    """A pipeline of a policy's family at full size, whose networks have no weights (see `StandIn`)."""
    import diffusers

    if pretrained == "tiny":
        from lit_align.policies.loading import tiny_pipeline

        pipe = tiny_pipeline(policy)
        parts = {name: without_values(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    else:
        from lit_align.policies.refusals import refuse_family

        folder = configs_of(pretrained)
        index = json.loads((folder / "model_index.json").read_text())
        refuse_family(policy, pretrained, index)
        parts = {name: load_part(folder, name, value) for name, value in index.items() if is_part(name, value)}
        parts = {name: None if name in (*policy.left_out, *UNUSED) else part for name, part in parts.items()}
        if vae and parts["vae"].config.get("force_upcast"):
            parts["vae"].register_to_config(force_upcast=False)  # another VAE is given because it needs none
        pipeline = getattr(diffusers, policy.pipeline_class)
        takes = signature(pipeline.__init__).parameters
        options = {name: value for name, value in index.items() if name in takes and not isinstance(value, list)}
        absent = {name: None for name, value in index.items() if name[0] != "_" and isinstance(value, list) and name not in parts}
        pipe = pipeline(**parts, **absent, **options)
        parts = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    stand_in(parts.pop(policy.denoiser_name))
    autoencoder = parts.pop("vae")
    stand_in(autoencoder.encoder, "encoders")
    stand_in(autoencoder.decoder, "decode")
    for part in parts.values():
        stand_in(part, "encoders")
    half = policy.dtype == torch.float16
    policy.dtype = torch.bfloat16 if half else policy.dtype  # of the same size; a CPU's autocast has no float16
    for part in filter(lambda part: isinstance(part, nn.Module), pipe.components.values()):
        convert(part, policy.dtype, half)
    if half and autoencoder.config.get("force_upcast"):
        convert(autoencoder, torch.float32, False)
    with_values(autoencoder)
    return pipe


def weightless_clip(pretrained: str) -> tuple[nn.Module, object]:
    """A CLIPModel of full size whose towers have no weights, and a tokenizer that has a token per byte."""
    from transformers import CLIPModel

    from lit_align.policies import tiny

    if pretrained == "tiny":
        return tiny.CLIPModel()
    model = built(CLIPModel, json.loads((configs_of(pretrained) / "config.json").read_text()))
    for tower in (model.vision_model, model.text_model):
        stand_in(tower, "reward")
    with_values(model)
    return model, tiny._tokenizer()


def is_part(name: str, value) -> bool:
    return name[0] != "_" and isinstance(value, list) and value[0] is not None and name not in UNUSED


def load_part(folder: Path, name: str, kind: list[str]):
    """A part of a pipeline from its configs: a scheduler, a tokenizer (the folder's own, else one that has a token per
    byte), or a network without weights."""
    library, kind = import_module(kind[0]), kind[1]
    if name.startswith("tokenizer"):
        return load_tokenizer(folder / name, kind)
    file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    config = json.loads(file.read_text())
    cls = getattr(library, kind)
    if name == "scheduler":
        return cls.from_config(config)
    return built(cls, config)


def load_tokenizer(folder: Path, kind: str):
    from transformers import AutoTokenizer

    from lit_align.policies import tiny, tiny_transformers

    if folder.is_dir():
        return AutoTokenizer.from_pretrained(folder)
    return tiny._tokenizer() if kind.startswith("CLIP") else tiny_transformers._byte_tokenizer()


def convert(part: nn.Module, dtype: torch.dtype, half: bool) -> None:
    """Gives weights a type, but those that their class keeps in float32: transformers' classes in float16 alone."""
    named = part._keep_in_fp32_modules if hasattr(part, "_keep_in_fp32_modules") else None
    kept = set(named or ()) if half or not hasattr(part, "_keep_in_fp32_modules_strict") else set()
    for path, module in part.named_modules():
        for name, p in module._parameters.items():
            if p is not None:
                to = torch.float32 if kept & {*path.split("."), name} else dtype
                module._parameters[name] = nn.Parameter(p.detach().to(to), p.requires_grad)
