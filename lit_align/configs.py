"""Configs: found by name, read, and joined with their base."""

import difflib
import re
from pathlib import Path

import yaml

from lit_align.paths import ROOT

CONFIGS = ROOT / "configs"


def find_config(name: str) -> Path:
    """The file that a name means: a path, or a file anywhere under `configs/`; `.yaml` may be left out."""
    if Path(name).is_file():
        return Path(name).resolve()
    wanted = name if name.endswith((".yaml", ".yml", ".json")) else f"{name}.yaml"
    if (CONFIGS / wanted).is_file():
        return CONFIGS / wanted
    known = {path.relative_to(CONFIGS).as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}
    known = {key: path for key, path in known.items() if path.parent != CONFIGS / "shapes/base"}
    found = [key for key in known if key.endswith(f"/{wanted}")]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise FileNotFoundError(f"{name} is the name of several configs: write one of {', '.join(found)}.")
    closest = difflib.get_close_matches(wanted, known, 3, 0)
    raise FileNotFoundError(f"there is no config {name}; the closest are {', '.join(closest)}.")


def load_config(name: str) -> dict:
    """The whole content of a config, by name or path. `base: NAME` in a file under configs/shapes stands for
    configs/shapes/base/NAME.yaml, and the file's own keys are merged over the base's:

    - mappings are merged key by key; lists and plain values replace the base's;
    - where the file gives another `class_path` than the base, the mapping replaces the base's wholly, `init_args` too;
    - a base has no base, and no file outside configs/shapes has one: published recipes are flat and whole.

    Raises ValueError, one sentence that names the file: not YAML, empty, a key given twice, a base that is refused.
    """
    path = find_config(name)
    config = read(path)
    if "base" not in config:
        return config
    if path.parent != CONFIGS / "shapes":
        raise ValueError(f"{path}: only a file directly under configs/shapes may have a base: write its keys out here.")
    base = config.pop("base")
    file = CONFIGS / f"shapes/base/{base}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in file.parent.glob("*.yaml")))
        raise ValueError(f"{path}: there is no base {base}; there are {known}.")
    return merge(read(file), config)


def merge(base: dict, own: dict) -> dict:
    """`own` over `base`, by the rules of `load_config`."""
    merged = dict(base)
    for key, value in own.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and same_class(before, value):
            value = merge(before, value)
        merged[key] = value
    return merged


def same_class(base: dict, own: dict) -> bool:
    """False where both name a class, and not the same."""
    return "class_path" not in base or "class_path" not in own or base["class_path"] == own["class_path"]


class Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key given twice and reads 1e-5 as a number."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "-+0123456789"
)


def read(path: Path) -> dict:
    """One YAML file as it stands."""
    try:
        config = yaml.load(path.read_text(), Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise ValueError(f"{path}:{where} {getattr(error, 'problem', None) or error}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, which a config has to be.") from error
    if config is None:
        raise ValueError(f"{path} is empty: give it model, data or trainer.")
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not keys such as model, data, trainer.")
    if path.parent == CONFIGS / "shapes/base" and "base" in config:
        raise ValueError(f"{path}: a base has no base of its own: merge the two.")
    return config
