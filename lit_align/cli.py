"""The command line: LightningCLI with configs found by name, a run folder, and errors of one sentence."""

import difflib
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import lightning as L
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from lit_align.checkpoint import AtomicCheckpointIO
from lit_align.paths import ROOT

CONFIGS = ROOT / "configs"


def import_all() -> None:
    """Imports every module that defines classes a config can name, so that short class names are known."""
    import callbacks  # noqa: F401

    for name in ("algorithms", "data", "diffusion", "policies", "rewards", "shapes"):
        package = importlib.import_module(f"lit_align.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def find_config(name: str) -> Path:
    """The config file a name means: a path, or a file under `configs/` by its path or name there, with or without .yaml."""
    if Path(name).is_file():
        return Path(name).resolve()
    wanted = name if name.endswith((".yaml", ".yml", ".json")) else f"{name}.yaml"
    if (CONFIGS / wanted).is_file():
        return CONFIGS / wanted
    known = sorted(CONFIGS.rglob("*.yaml"))
    found = [path for path in known if path.as_posix().endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0]
    names = [path.relative_to(CONFIGS).as_posix() for path in (found or known)]
    closest = names if found else difflib.get_close_matches(wanted, names, 3, 0.3)
    what = f"{name} is the name of several configs" if found else f"there is no config {name}"
    raise FileNotFoundError(f"{what}; {'they are' if found else 'the closest are'} {', '.join(closest)}.")


class ConfigFile(ActionConfigFile):
    """`--config`, given by name."""

    def __call__(self, parser, cfg, values, option_string=None):
        try:
            values = str(find_config(values))
        except FileNotFoundError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, values, option_string)


def subclasses(base: type) -> set[str]:
    return {c.__name__ for c in base.__subclasses__()}.union(*(subclasses(c) for c in base.__subclasses__()))


class Parser(LightningArgumentParser):
    """Says what is wrong in one sentence."""

    names: tuple[type, ...] = ()  # base classes whose subclasses a config may name

    def error(self, message: str, ex: Exception | None = None):
        if not self.exit_on_error:  # a trial parse
            super().error(message, ex)
        sys.stderr.write(f"lit_align: {self.sentence(message)}\n")
        raise SystemExit(2)

    def sentence(self, message: str) -> str:
        """The cause out of jsonargparse's report, with the closest names that would have been right."""
        if m := re.search(r"(?:Key|Option) '([\w.\-]+)' is not (?:expected|accepted)|[Uu]nrecognized arguments: --([\w.]+)", message):
            key = (m[1] or m[2]).rsplit(".", 1)[-1].removesuffix("+")
            return f"there is no option {m[1] or m[2]}{self.close(key, self.options())}."
        if m := re.search(r"Expected a dot import path string: ([\w.]+)", message):
            known = set().union(*(subclasses(base) for base in self.names))
            return f"there is no class {m[1]}{self.close(m[1], known)}."
        if found := re.findall(r'Parser key "([\w.]+)": ([^\n]+)', message):
            key, why = found[-1]  # the innermost
            if "Does not validate against any" not in why:
                return f"{key}: {why}"
        noise = ("Expected a <class 'NoneType'>", "Problem with given class_path")
        reasons = [r for r in re.findall(r"^\s*- (.+)$", message, re.M) if not r.startswith(noise)]
        return reasons[0] if reasons else re.sub(r"\s+", " ", message).strip()

    def options(self) -> set[str]:
        """Every option and constructor argument there is."""
        import inspect

        found = {action.dest.rsplit(".", 1)[-1] for action in self._actions}
        for base in (*self.names, L.Trainer):
            for cls in (base, *_all_subclasses(base)):
                found |= set(inspect.signature(cls.__init__).parameters)
        return found

    @staticmethod
    def close(name: str, known: set[str]) -> str:
        matches = difflib.get_close_matches(name, sorted(known), 3, 0.5)
        return f"; the closest are {', '.join(matches)}" if matches else ""


def _all_subclasses(base: type) -> list[type]:
    return [d for c in base.__subclasses__() for d in (c, *_all_subclasses(c))]


class CLI(LightningCLI):
    """LightningCLI for this library. Flags and files win over what a checkpoint recorded."""

    def init_parser(self, **kwargs):
        parser = super().init_parser(**kwargs)
        action = next(a for a in parser._actions if isinstance(a, ActionConfigFile))
        action.__class__ = ConfigFile
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's values replace those typed now; here the checkpoint gives weights and state."""

    def run_folder(self) -> str:
        """`checkpoints/<config>[+<overlay>...]` under the working directory, after the names of the --config files."""
        files = [Path(str(f)) for f in self._get(self.config, "config") or []]
        names = [f.relative_to(CONFIGS).with_suffix("").as_posix() if f.is_relative_to(CONFIGS) else f.stem for f in files]
        return str(Path("checkpoints", "+".join([names[0], *(n.rsplit("/", 1)[-1] for n in names[1:])]) if names else "run"))

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError) as error:  # jsonargparse wraps what a constructor raises
            self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs):
        config = self._get(self.config_init, "trainer")
        root = config.get("default_root_dir") or self.run_folder()
        kwargs["default_root_dir"] = root
        if config.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(root, name="", version="")
        plugins = config.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        self._check_last(root)
        return super().instantiate_trainer(**kwargs)

    def _check_last(self, root: str) -> None:
        if self.subcommand != "fit" and self._get(self.config, "ckpt_path") == "last":
            if not list(Path(root).glob("checkpoints/last*.ckpt")) and not list(Path(root).glob("checkpoints/last*/.metadata")):
                self.parser.error(f"there is no checkpoint in {root}/checkpoints; run fit first or give --ckpt_path a file.")


def main(args: list[str] | None = None, model_class=None, data_class=None) -> CLI:
    """Runs the command line; `args` in place of the process's own."""
    import_all()
    from lit_align.algorithms.algorithm import Algorithm
    from lit_align.data.datamodule import AlignData
    from lit_align.diffusion.transition import Transition
    from lit_align.policies.adapters import Adapter
    from lit_align.policies.policy import Policy
    from lit_align.rewards.reward import Reward

    model_class, data_class = model_class or Algorithm, data_class or AlignData
    Parser.names = (model_class, data_class, Policy, Adapter, Reward, Transition, L.Callback)
    return CLI(
        model_class,
        data_class,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        parser_class=Parser,
        trainer_defaults={"inference_mode": False},  # steered sampling takes gradients
        save_config_kwargs={"overwrite": True},
        args=args,
    )
