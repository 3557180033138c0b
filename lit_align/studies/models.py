"""Writes docs/models.md: every family of models, the pipeline and denoiser that it reads, and what was run with it.

`python -m lit_align.studies.models`
"""

import argparse
import re
import sys

from torch import nn

from lit_align.cli import import_all
from lit_align.cli_errors import subclasses
from lit_align.configs import CONFIGS, load_config
from lit_align.paths import ROOT
from lit_align.policies.policy import Policy
from lit_align.studies.methods import links
from lit_align.studies.runs import markdown

PAGE = ROOT / "docs/models.md"
HEADS = [
    "family",
    "paper",
    "pipeline",
    "denoiser",
    "predicts",
    "methods",
    "LoRA",
    "full",
    "FSDP",
    "checkpointing",
    "single file",
    "recipes",
]
INTRO = """# Models

Written by `python -m lit_align.studies.models`, out of the classes. `--model.policy FAMILY --model.policy.pretrained
<hub id or folder>` takes a checkpoint whose model_index.json names the pipeline. What the cells say is tested on a
tiny pipeline with random weights, which `--model.policy.pretrained tiny` gives, too: our sampler draws what the
pipeline draws, to 1e-4; each of the methods trains; a saved LoRA, or a saved pipeline, gives plain diffusers the same
image; a step of two FSDP ranks is the step of one process. No published weights were at hand.

- "predicts": what the denoiser outputs with its published scheduler. `FlowDPO` is for flows, and so are the SDEs of
  `FlowGRPO`; `DDPO` with `DDIM` is for the others. A method of `docs/methods.md` that takes one kind alone says so.
- "LoRA": how diffusers, or peft, loads what a run writes to `policy/`.
- "FSDP": the lists of blocks that are gathered one after the other (`--config fsdp.yaml`).
- "checkpointing": whether `--model.policy.gradient_checkpointing true` works.
- "single file": whether one .safetensors file is read (`single_file_config`); "not tested" where diffusers says that
  it reads one.

"""
METHODS = {  # by whether the process is a flow; tests/policies/test_families_train.py runs them
    True: ["DiffusionDPO", "FlowDPO", "FlowGRPO", "DiffusionNFT", "DRaFT"],
    False: ["DiffusionDPO", "DDPO", "DiffusionNFT", "DRaFT"],
}
SINGLE_FILES = (
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
)  # tests/policies/test_single_file.py reads them


def families() -> list[type[Policy]]:
    """The model families, by name."""
    import_all()
    found = [
        cls
        for cls in subclasses(Policy)
        if cls.__module__.startswith("lit_align.policies.") and hasattr(cls, "pipeline_class")  # bases have none
    ]
    return sorted(found, key=lambda cls: cls.__name__.lower())


def lora_loader(policy: Policy) -> str:
    """What loads a LoRA that the policy saves."""
    from diffusers.loaders import PeftAdapterMixin
    from diffusers.loaders.lora_base import LoraBaseMixin

    adapted = isinstance(policy.denoiser, PeftAdapterMixin)
    if adapted and isinstance(policy.pipe, LoraBaseMixin):
        return "pipe.load_lora_weights"
    return f"pipe.{policy.denoiser_name}.load_lora_adapter" if adapted else "peft.PeftModel.from_pretrained"


def lists_of_blocks(policy: Policy) -> list[str]:
    """The names of the lists below the denoiser that FSDP gathers block by block."""
    blocks = set(map(id, policy.blocks(policy.denoiser)))
    lists = [(name, part) for name, part in policy.denoiser.named_children() if isinstance(part, nn.ModuleList)]
    return [name for name, part in lists if len(part) and {id(block) for block in part} <= blocks]


def single_file(policy: Policy) -> str:
    """yes where a test reads one, not tested where diffusers reads one, else no."""
    from diffusers.loaders import FromSingleFileMixin

    if type(policy).__name__ in SINGLE_FILES:
        return "yes"
    return "not tested" if isinstance(policy.pipe, FromSingleFileMixin) else "no"


def recipes() -> dict[str, list[str]]:
    """Name of a family -> the recipes for it, without .yaml."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        policy = load_config(path.name)["model"]["init_args"].get("policy")
        if policy:
            found.setdefault(policy["class_path"], []).append(path.stem)
    return found


def papers(cls: type[Policy]) -> str:
    """Links to the papers that a family's file names."""
    found = re.findall(r"\d{4}\.\d{5}", f"{sys.modules[cls.__module__].__doc__} {cls.__doc__}")
    return ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in dict.fromkeys(found)) or "-"


def listed(used: list[str]) -> str:
    """Links to recipes, to six at most."""
    more = f", and {len(used) - 6} more in [recipes.md](recipes.md)" if len(used) > 6 else ""
    return (", ".join(f"[`{name}`](../configs/{name}.yaml)" for name in used[:6]) or "-") + more


def row(cls: type[Policy], used: list[str]) -> list[str]:
    """The cells of a family's row."""
    from lit_align.policies.adapters import Frozen

    policy = cls("tiny", Frozen())
    denoiser = type(policy.denoiser)
    return [
        links(cls)[0],
        papers(cls),
        f"`{cls.pipeline_class}`",
        f"`{denoiser.__name__}`",
        policy.process.prediction,
        ", ".join(f"`{name}`" for name in METHODS[policy.process.prediction == "flow"]),
        f"`{lora_loader(policy)}`",
        "yes",
        ", ".join(f"`{name}`" for name in lists_of_blocks(policy)),
        "yes" if denoiser._supports_gradient_checkpointing else "no",
        single_file(policy),
        listed(used),
    ]


def page() -> str:
    """The text of docs/models.md."""
    used = recipes()
    return INTRO + markdown(HEADS, (row(cls, used.get(cls.__name__, [])) for cls in families()))


def main(args: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m lit_align.studies.models", description=__doc__).parse_args(args)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
