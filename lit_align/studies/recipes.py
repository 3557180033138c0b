"""Writes docs/recipes.md: every recipe for a published model, its paper, and what it loads, asks for and trains on.

`python -m lit_align.studies.recipes`
"""

import argparse
import inspect
import re
from collections.abc import Iterator

from lit_align.cli import import_all
from lit_align.cli_errors import subclasses
from lit_align.configs import CONFIGS, load_config
from lit_align.paths import ROOT
from lit_align.studies.runs import markdown

PAGE = ROOT / "docs/recipes.md"
HEADS = ["recipe", "method", "paper", "models and data of the hub", "pixels", "devices", "batch", "training"]
SOURCES = (
    "pretrained",
    "clip",
    "vae",
    "path",
    "checkpoint",
    "val_path",
    "tokenizer",
    "motion_adapter",
    "vit",
)  # may name a hub repository
INTRO = """# Recipes

Written by `python -m lit_align.studies.recipes`. The header of each file under `configs/` says what was published, on
what hardware, and where the recipe differs. "batch" is rows on a device x accumulated batches x devices: rows of the
data, or prompts where the method samples its own images. `docs/hub.md` says which of the hub's repositories are gated,
copies or removed.

Recipes of `Steered` train nothing: run `test` or `predict` with them. Their batch is the prompts sampled at once.

`--config smoke.yaml` after a recipe makes two steps of it on a CPU. `--config one_gpu.yaml` fits recipes for pairs to
one GPU of 24 GB, `--config one_gpu_online.yaml` those that sample while they train. Validation and test sample the 32
prompts of `configs/prompts/small.jsonl`; give your own by `--data.val_prompts` and `--data.test_prompts`. The recipes
for reward models validate on held-out pairs instead.

"""


def hub_ids(part) -> Iterator[str]:
    """The hub repositories `<owner>/<name>` that a config names, and those that its classes load by default."""
    if isinstance(part, list):
        for value in part:
            yield from hub_ids(value)
    if not isinstance(part, dict):
        return
    given = part.get("init_args", {})
    if "class_path" in part:
        given = default_sources(part["class_path"]) | {k: v for k, v in given.items() if k in SOURCES}
    for key, value in given.items():
        if key in SOURCES and isinstance(value, str) and re.match(r"[\w.-]+/[\w.-]+(/|$)", value):
            if not value.startswith(("checkpoints/", "configs/")):
                yield "/".join(value.split("/")[:2])
    for value in part.values():
        yield from hub_ids(value)


def default_sources(name: str) -> dict[str, str]:
    """What a class of ours loads where a config gives nothing."""
    from lit_align.algorithms.sampling import Sampling
    from lit_align.data.datamodule import AlignData
    from lit_align.policies.policy import Policy
    from lit_align.rewards.reward import Reward
    from lit_align.rewards.step_reward import StepReward

    ours = set().union(*map(subclasses, (Sampling, AlignData, Policy, Reward, StepReward)))
    for cls in ours:
        if cls.__name__ == name:
            found = inspect.signature(cls.__init__).parameters.values()
            return {p.name: p.default for p in found if p.name in SOURCES and isinstance(p.default, str)}
    return {}


def row(name: str) -> list:
    """The cells of a recipe's row."""
    config = load_config(name)
    header = "".join(line for line in (CONFIGS / name).read_text().splitlines(True) if line.startswith("#"))
    trainer, data = config["trainer"], config["data"]["init_args"]
    papers = dict.fromkeys(re.findall(r"\d{4}\.\d{5}", header))
    accumulate, devices = trainer.get("accumulate_grad_batches", 1), trainer["devices"]
    epochs, steered = trainer.get("max_epochs", 1), config["model"]["class_path"] == "Steered"
    size = data["val_batch_size" if steered else "batch_size"]
    training = f"{trainer['max_steps']} steps" if "max_steps" in trainer else f"{epochs} epoch{'s' * (epochs > 1)}"
    return [
        f"[`{name.removesuffix('.yaml')}`](../configs/{name})",
        config["model"]["class_path"],
        ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in papers) or "-",
        ", ".join(f"`{i}`" for i in dict.fromkeys(hub_ids(config))),
        " x ".join(map(str, data["resolution"])) if isinstance(data["resolution"], list) else data["resolution"],
        devices,
        f"{size} x {accumulate} x {devices} = {size * accumulate * devices}",
        "none" if steered else training,
    ]


def page() -> str:
    """The text of docs/recipes.md."""
    import_all()
    return INTRO + markdown(HEADS, (row(path.name) for path in sorted(CONFIGS.glob("*.yaml"))))


def main(args: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m lit_align.studies.recipes", description=__doc__).parse_args(args)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
