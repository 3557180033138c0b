"""Writes docs/methods.md: every method, its paper, what it learns from, and the configs that run it.

`python -m lit_align.methods`
"""

import inspect
import re
from pathlib import Path

from lit_align.cli import CONFIGS, import_all, subclasses
from lit_align.paths import ROOT

PAGE = ROOT / "docs/methods.md"
FAMILIES = (
    "preference",
    "policy_gradient",
    "forward_process",
    "reward_gradient",
    "reward_weighted",
    "reward_modeling",
    "inference",
)


def configs() -> dict[str, list[str]]:
    """Class name -> the configs that name it, without .yaml."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        if match := re.search(r"^model:\n  class_path: (\w+)", path.read_text(), re.M):
            found.setdefault(match[1], []).append(path.relative_to(CONFIGS).with_suffix("").as_posix())
    return found


def family_of(config: str) -> str:
    """The family of the method that a config runs: the room its class lives in."""
    import_all()
    from lit_align.algorithms.algorithm import Algorithm

    name = next(name for name, used in configs().items() if config in used)
    return next(c.__module__.split(".")[2] for c in subclasses(Algorithm) if c.__name__ == name)


def is_base(cls: type) -> bool:
    """Whether a class leaves the equation to its subclasses."""
    abstract = any(getattr(getattr(cls, name), "__isabstractmethod__", False) for name in dir(cls))
    return abstract or cls.__module__.split(".")[-1] == cls.__module__.split(".")[-2]


def row(cls: type, used: list[str]) -> str:
    papers = re.findall(r"\d{4}\.\d{5}", inspect.getdoc(cls))
    source = Path(inspect.getfile(cls))
    cells = [
        f"[`{cls.__name__}`](../{source.relative_to(ROOT).as_posix()})",
        ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in dict.fromkeys(papers)) or "-",
        ", ".join(cls.feedback) or "prompt",
        "moves" if cls.moves_reference else "yes" if cls.uses_reference else "no",
        ", ".join(f"`{name}`" for name in used if name.startswith("shapes/")) or "-",
        ", ".join(f"`{name}`" for name in used if not name.startswith("shapes/")) or "-",
        str(len(source.read_text().splitlines())),
    ]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The text of docs/methods.md."""
    import_all()
    from lit_align.algorithms.algorithm import Algorithm

    used, parts = configs(), []
    for family in FAMILIES:
        where = f"lit_align.algorithms.{family}."
        classes = [c for c in subclasses(Algorithm) if c.__module__.startswith(where) and not is_base(c)]
        methods = sorted(classes, key=lambda c: c.__name__.lower())
        heads = ["class", "paper", "learns from", "reference", "on Shapes", "recipe", "lines of its file"]
        rows = "\n".join(row(c, used.get(c.__name__, [])) for c in methods)
        parts.append(f"## {family}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n{rows}\n")
    return "# Methods\n\nWritten by `python -m lit_align.methods`.\n\n" + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(page())
