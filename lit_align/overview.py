"""`python -m lit_align`, `--help` and `list`: what there is, read from the source files, so that nothing heavy is
imported."""

import ast
import itertools
import re
import sys
import textwrap
from pathlib import Path

from lit_align.configs import CONFIGS
from lit_align.paths import PACKAGE

HELP = """\
lit_align aligns diffusion models: it trains or steers them towards preferences and rewards, and tests the result.

  python -m lit_align fit  --config shapes/dpo.yaml                     train; about three minutes on a laptop's CPU
  python -m lit_align test --config shapes/dpo.yaml --ckpt_path last    compare the result with the base model
  python -m lit_align fit  --config dpo_sdxl.yaml --config smoke.yaml   two steps of a published recipe, tiny weights

Commands
  fit         train
  validate    score samples of the validation prompts
  test        score samples of the test prompts before and after training, and write pictures
  predict     write samples to disk
  export      write a checkpoint as LoRA weights or a pipeline, for diffusers or (--format kohya) ComfyUI
  estimate    say what a recipe needs of a GPU, without weights or a GPU: memory, operations, hours
  list        what there is: methods, steering, recipes, policies, rewards, metrics, datasets (list NAME: one of these)
{TOOLS}

A config is found by its name under {CONFIGS}.
Later --config files and flags win: --model.beta 1000, --data.path pairs.jsonl, --trainer.devices 8.

  python -m lit_align fit --config dpo_sdxl.yaml --print_config   every option of a recipe with its value
  python -m lit_align fit --model.help DiffusionDPO               what a method takes
  python -m lit_align fit --help                                  every option of a command
  python -m lit_align merge --help                                what merge, or another of these tools, takes
  --debug                                                         with any command: the traceback of an error
"""


def answer(args: list[str]) -> bool:
    """Prints what `args` ask for; False where they are a command that runs something."""
    if not args or args[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:<12}{line}" for name, line in tools().items())
        print(HELP.format(CONFIGS=CONFIGS, TOOLS=lines), end="")
        return True
    if args[0] != "list":
        return False
    parts = {"methods": methods, "steering": steering, "recipes": recipes, "policies": policies}
    parts |= {"rewards": rewards, "metrics": metrics, "datasets": datasets}
    if unknown := [name for name in args[1:] if name not in parts]:
        sys.exit(f"lit_align: there is no list of {unknown[0]}; there are {', '.join(parts)}.")
    for name in args[1:] or parts:
        print(f"{name}\n" + "\n".join(f"  {key:<28} {line}" for key, line in parts[name]().items()) + "\n")
    return True


def brief(text: str) -> str:
    """The first sentence or paragraph, cut to one line."""
    return textwrap.shorten(re.split(r"\n\n|\.\n|\. (?=[A-Z])|\n *How to run:", text)[0], 110, placeholder=" ...")


def recipes() -> dict[str, str]:
    """Config -> the beginning of its header."""
    files = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (len(path.relative_to(CONFIGS).parts), path))
    return {
        path.relative_to(CONFIGS).with_suffix("").as_posix(): brief(re.sub(r"(?m)^#? ?", "", header(path)))
        for path in files
        if path.parent.name != "base"
    }


def header(path: Path) -> str:
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), path.open()))


def methods() -> dict[str, str]:
    return named(subclasses("LightningModule"), "algorithms")


def steering() -> dict[str, str]:
    return named(subclasses("Hook") | subclasses("Sampler"), "steering")


def policies() -> dict[str, str]:
    return named(subclasses("Policy"), "policies")


def metrics() -> dict[str, str]:
    return named(subclasses("Measure"), "metrics")


def rewards() -> dict[str, str]:
    return named(subclasses("Reward"), "rewards", "shapes")


def datasets() -> dict[str, str]:
    return named(subclasses("AlignData"), "data", "shapes")


def tools() -> dict[str, str]:
    """Command -> a line about it: every file of `tools/` with a function of its own name."""
    lines = {}
    for path in sorted((PACKAGE / "tools").glob("*.py")):
        functions = {f.name: f for f in ast.parse(path.read_text()).body if isinstance(f, ast.FunctionDef)}
        if path.stem in functions:
            line = brief(ast.get_docstring(functions[path.stem]) or "")
            lines[path.stem] = line[:1].lower() + line[1:]
    return lines


def classes() -> dict[str, tuple[Path, ast.ClassDef, str]]:
    """Name -> (file, class, docstring of the file) of every public class of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        public = [c for c in tree.body if isinstance(c, ast.ClassDef) and not c.name.startswith("_")]
        found |= {c.name: (path, c, ast.get_docstring(tree) or "") for c in public}
    return found


def subclasses(base: str) -> dict[str, tuple[Path, ast.ClassDef, str]]:
    """The classes that inherit from `base`, directly or not, by the names in their class statements."""
    every, names, size = classes(), {base}, 0
    while size < len(names):
        size = len(names)
        names |= {name for name, (_, c, _) in every.items() if names & {ast.unparse(b).split(".")[-1] for b in c.bases}}
    return {name: every[name] for name in every if name in names - {base}}


def named(found: dict[str, tuple[Path, ast.ClassDef, str]], *folders: str) -> dict[str, str]:
    """Name -> a line about it, of the classes in these folders that can be used as they are."""
    lines = {}
    for name, (path, cls, doc) in found.items():
        top, *inside = path.relative_to(PACKAGE).parts
        abstract = any("abstractmethod" in ast.unparse(d) for f in cls.body for d in getattr(f, "decorator_list", []))
        family = top == "algorithms" and (len(inside) == 1 or path.stem == path.parent.name)
        own = ast.get_docstring(cls) or "Args:"
        if top in folders and not abstract and not family and not own.startswith("Base of"):
            of_file = top in ("algorithms", "steering", "policies") or own.startswith("Args:")
            lines[name] = brief(doc if of_file else own)
    return dict(sorted(lines.items(), key=lambda item: item[0].lower()))
