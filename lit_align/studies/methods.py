"""Writes docs/methods.md: every method, its paper, the data that it needs, and the configs that run it.

`python -m lit_align.studies.methods`
"""

import argparse
import inspect
import re
from pathlib import Path

from lit_align.cli import import_all
from lit_align.cli_errors import subclasses
from lit_align.configs import CONFIGS, load_config
from lit_align.paths import ROOT
from lit_align.studies.runs import markdown

PAGE = ROOT / "docs/methods.md"
HEADS = ["class", "paper", "data", "reference", "Shapes configs", "recipes", "lines of its file"]
INTRO = """# Methods

Written by `python -m lit_align.studies.methods`. "data" names the keys of a batch that the method trains on, or
"prompt" if it trains on its own samples. "reference" says whether the method compares with a frozen copy of the base
model; "moves" means that the copy is updated during training. Shapes configs run on a CPU; recipes are for published
models.
"""


STEERING = """## steering

Training-free methods. A hook goes into the list `steering` of a sampler; a sampler goes around another sampler. Both
work with the policy of any method, a trained one too, and under `Steered`.

"""


def methods() -> dict[str, list[type]]:
    """Family, the folder below algorithms/ -> its methods, the classes with an equation of their own."""
    import_all()
    from lit_align.algorithms.algorithm import Algorithm

    found: dict[str, list[type]] = {}
    for cls in sorted(subclasses(Algorithm), key=lambda c: c.__name__.lower()):
        parts = cls.__module__.split(".")
        if parts[:2] == ["lit_align", "algorithms"] and len(parts) == 4 and not is_base(cls):
            found.setdefault(parts[2], []).append(cls)
    return dict(sorted(found.items()))


def steering() -> list[type]:
    """The hooks and samplers of lit_align/steering."""
    import_all()
    from lit_align.diffusion.hook import Hook
    from lit_align.diffusion.sampler import Sampler

    found = [c for base in (Hook, Sampler) for c in subclasses(base) if c.__module__.startswith("lit_align.steering.")]
    return sorted((c for c in found if not is_base(c) and c.__name__[0] != "_"), key=lambda c: c.__name__.lower())


def configs() -> dict[str, list[str]]:
    """Class name -> the configs that run it, without .yaml."""
    found: dict[str, list[str]] = {}
    for folder in (CONFIGS, CONFIGS / "shapes"):
        for path in sorted(folder.glob("*.yaml")):
            name = load_config(str(path))["model"]["class_path"]
            found.setdefault(name, []).append(path.relative_to(CONFIGS).with_suffix("").as_posix())
    return found


def steering_configs() -> dict[str, list[str]]:
    """Name of a class in the sampler of a config of Steered -> the configs, without .yaml."""
    found: dict[str, list[str]] = {}
    for name in configs().get("Steered", []):
        left = [load_config(name)["model"]["init_args"]["sampler"]]
        while left:
            part = left.pop()
            left += [v for v in (part.values() if isinstance(part, dict) else part) if isinstance(v, dict | list)]
            if isinstance(part, dict) and "class_path" in part:
                found.setdefault(part["class_path"], []).append(name)
    return found


def is_base(cls: type) -> bool:
    """Whether a class leaves its equation to subclasses: it is abstract or says so, or its file has the name of its
    folder."""
    abstract = any(getattr(getattr(cls, name), "__isabstractmethod__", False) for name in dir(cls))
    abstract = abstract or inspect.getdoc(cls).startswith("Base of")
    return abstract or cls.__module__.split(".")[-1] == cls.__module__.split(".")[-2]


def links(cls: type) -> list[str]:
    """Links to a class's file and to the papers that its docstring names."""
    papers = re.findall(r"\d{4}\.\d{5}", inspect.getdoc(cls))
    return [
        f"[`{cls.__name__}`](../{Path(inspect.getfile(cls)).relative_to(ROOT).as_posix()})",
        ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in dict.fromkeys(papers)) or "-",
    ]


def listed(used: list[str]) -> list[str]:
    """The configs on Shapes, and the recipes."""
    on_shapes = [name.startswith("shapes/") for name in used]
    return [", ".join(f"`{n}`" for n, mine in zip(used, on_shapes) if mine == kind) or "-" for kind in (True, False)]


def row(cls: type, used: list[str]) -> list[str]:
    """The cells of a method's row."""
    return [
        *links(cls),
        ", ".join(cls.feedback) or "prompt",
        "moves" if cls.moves_reference else "yes" if cls.uses_reference else "no",
        *listed(used),
        str(len(Path(inspect.getfile(cls)).read_text().splitlines())),
    ]


def steering_row(cls: type, used: list[str]) -> list[str]:
    """The cells of a training-free method's row."""
    from lit_align.diffusion.hook import Hook

    how = "hook" if issubclass(cls, Hook) else "sampler around a sampler"
    return [*links(cls), how, *listed(used)]


def page() -> str:
    """The text of docs/methods.md."""
    used = configs()
    sections = [
        f"## {family}\n\n" + markdown(HEADS, (row(c, used.get(c.__name__, [])) for c in classes))
        for family, classes in methods().items()
    ]
    steered = steering_configs()
    rows = [steering_row(cls, sorted(set(steered.get(cls.__name__, [])))) for cls in steering()]
    return "\n".join([INTRO, *sections, STEERING + markdown(["class", "paper", "how", *HEADS[4:6]], rows)])


def main(args: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m lit_align.studies.methods", description=__doc__).parse_args(args)
    PAGE.write_text(page())
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
