"""The command line: LightningCLI with configs found by name, a run folder, and errors of one sentence."""

import difflib
import importlib
import os
import pkgutil
import re
import sys
from inspect import signature
from pathlib import Path

import lightning as L
import torch
import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_align import configs
from lit_align.checkpoint import AtomicCheckpointIO
from lit_align.paths import find


def import_all() -> None:
    """Imports every module that defines classes a config can name, so that short class names are known."""
    importlib.import_module("lit_align.callbacks")
    for name in ("algorithms", "data", "diffusion", "policies", "rewards", "shapes", "steering"):
        package = importlib.import_module(f"lit_align.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


class ConfigFile(ActionConfigFile):
    """`--config`, given by name."""

    def __call__(self, parser, cfg, values, option_string=None):
        try:
            values = str(configs.find_config(values))
        except FileNotFoundError as error:
            parser.error(str(error))
        parser.reading = f"{values}: "
        super().__call__(parser, cfg, values, option_string)
        parser.reading = ""


def subclasses(base: type) -> set[type]:
    return {base}.union(*(subclasses(c) for c in base.__subclasses__()))


def no(what: str, name: str, wrong: str, known: set[str]) -> str:
    """There is no `name`, for want of its part `wrong`: the sentence, with what was perhaps meant."""
    matches = difflib.get_close_matches(wrong, sorted(known), 3)
    return f"there is no {what} {name}" + (f"; did you mean {', '.join(matches)}?" if matches else ".")


class Parser(LightningArgumentParser):
    """Says what is wrong in one sentence."""

    bases: tuple[type, ...] = ()  # the classes whose subclasses a config may name
    reading = ""  # the config file that is being read

    def parse_path(self, path, **kwargs):
        """Reads a config file with its base merged in."""
        try:
            content = yaml.safe_dump(configs.load_config(path), sort_keys=False)
        except ValueError as error:
            self.reading = ""  # the message names the file
            self.error(str(error))
        return self.parse_string(content, path=Path(path).name, **kwargs)

    def error(self, message: str, ex: Exception | None = None):
        if not self.exit_on_error:  # a trial parse
            super().error(message, ex)
        sys.stderr.write(f"lit_align: {self.reading}{self.sentence(message)}\n")
        raise SystemExit(2)

    def sentence(self, message: str) -> str:
        """The cause out of jsonargparse's nested report, with the closest names that would have been right."""
        known = set().union(*(subclasses(base) for base in self.bases))
        option = r"ption '([\w.]+)' is not|accept option '([\w.]+)'|unrecognized arguments: -*([\w.]+)"
        if m := re.search(option, message):
            options = {"model", "data", "trainer", "class_path", "init_args"}
            options = options.union(*(signature(c.__init__).parameters for c in known))
            option = m[1] or m[2] or m[3]
            wrong = next((part for part in option.split(".") if part not in options), option)
            return no("option", option, wrong, options)
        name = r"a dot import path string: ([\w.]+)|has no attribute '(\w+)'|No module named '([\w.]+)'"
        if m := re.search(name, message):
            name = m[1] or m[2] or m[3]
            return no("module" if m[3] else "class", name, name, {c.__name__ for c in known})
        if m := re.search(r"arguments are required: (.+)", message):
            return f"{m[1]} not given: name a file under configs/ with --config, or give --model and --data."
        # the innermost key and the lines indented under it
        key, lines = "", message
        for m in re.finditer(r'^( *)Parser key "([\w.]+)":(?=((?:\n\1 .*|\n)+))', message, re.M):
            key, lines = f"{m[2]}: ", m[3]
        noise = "Expected a <class 'NoneType'>|Expected a path|Does not validate"
        reasons = re.findall(rf"^ *- (?!{noise})(.+)$", lines, re.M) or [lines]
        value = re.search(r"Given value: (?!Namespace)(.+)", lines)
        text = " or ".join(reasons).replace("or Expected a ", "or ") + (f", got {value[1]}" if value else "")
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "").replace(". Got value:", ", got")
        return key + " ".join(text.split())


TINY = {"pretrained": "tiny", "vae": None, "quantize": None, "checkpoint": None, "dtype": "float32", "resolution": 32}
FEW = {"samples_per_prompt": 2, "updates": 1, "accumulate": 1}


def shrink(config) -> None:
    """Gives tiny random weights to whatever in a model's config loads some, policies and rewards, and little to do."""
    for key, value in vars(config).items():
        if key in TINY:
            config[key] = TINY[key]
        elif key in FEW and isinstance(value, int):
            config[key] = min(value, FEW[key])
        values = value.values() if isinstance(value, dict) else value
        for part in values if isinstance(value, list | dict) else [value]:
            if isinstance(part, Namespace):
                shrink(part)


class CLI(LightningCLI):
    """LightningCLI for this library. Flags and files win over what a checkpoint recorded."""

    def init_parser(self, **kwargs):
        parser = super().init_parser(**kwargs)
        action = next(a for a in parser._actions if isinstance(a, ActionConfigFile))
        action.__class__ = ConfigFile
        return parser

    def add_arguments_to_parser(self, parser) -> None:
        parser.add_argument(
            "--budget",
            type=int | None,
            default=None,
            help="Seconds of training in the comparison of methods (lit_align.studies); fit and test do not read it.",
        )

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's values replace those typed now: here it gives weights and state."""

    def run_folder(self) -> str:
        """`checkpoints/<config>[+<overlay>...]` under the working directory, after the names of the --config files."""
        files = [Path(str(f)) for f in self._get(self.config, "config") or []]
        if not files:
            return "checkpoints/run"
        inside = files[0].is_relative_to(configs.CONFIGS)
        first = files[0].relative_to(configs.CONFIGS).with_suffix("") if inside else files[0].stem
        return str(Path("checkpoints", "+".join([str(first), *(f.stem for f in files[1:])])))

    def before_instantiate_classes(self) -> None:
        trainer = self.config[self.subcommand].trainer
        trainer.default_root_dir = trainer.default_root_dir or self.run_folder()  # so that the saved config names it
        if self.config[self.subcommand].data.init_args.get("smoke"):
            shrink(self.config[self.subcommand].model)
        if self.subcommand != "fit":
            self.save_config_callback = None  # the run folder keeps the config that trained it

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            getattr(self.model, "initialise", lambda: None)()
        except (ValueError, OSError, MisconfigurationException) as error:  # what a constructor says of its arguments
            self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs):
        config = self._get(self.config_init, "trainer")
        if config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(config.default_root_dir, name="", version="")
        plugins = config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Refuses what the Trainer cannot do for the method, and makes a path of `--ckpt_path last|best`: a checkpoint
        of the run that `fit` with the same --config left."""
        config, t, who = self.config_init[self.subcommand], self.trainer, type(self.model).__name__
        if self.subcommand == "fit" and not self.model.automatic_optimization:
            for flag, given, instead in (
                ("gradient_clip_val", t.gradient_clip_val, "model.max_grad_norm"),
                ("accumulate_grad_batches", t.accumulate_grad_batches != 1, "data.batch_size"),
            ):
                if given:
                    self.parser.error(
                        f"{who} makes its own optimizer steps: set --{instead} in place of --trainer.{flag}."
                    )
        if self.subcommand == "fit" and config.ckpt_path == "last":
            return  # Lightning resumes, or says that there is nothing to resume and starts: for jobs that are requeued
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = self.of_run(config.ckpt_path)
        elif config.ckpt_path:
            config.ckpt_path = find(config.ckpt_path)
            if not Path(config.ckpt_path).exists():
                self.parser.error(f"there is no checkpoint {config.ckpt_path}; give last, best or a file.")

    def of_run(self, which: str) -> str:
        """The path of the run folder's last checkpoint, or of the best that one knows of."""
        callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        found = [path for c in callbacks for path in c._find_last_checkpoints(self.trainer)]
        if not found:
            folder = os.path.normpath(self.trainer.log_dir)
            self.parser.error(f"there is no last checkpoint in {folder}: run fit with the same --config first.")
        last = Path(max(found, key=os.path.getmtime))
        if which == "last":
            return str(last)
        file = last / "meta.pt" if last.is_dir() else last  # a folder where the run was sharded
        callbacks = torch.load(file, weights_only=True, mmap=True, map_location="cpu")["callbacks"]
        states = [s for name, s in callbacks.items() if name.startswith("ModelCheckpoint") and s["best_model_path"]]
        if not states:
            self.parser.error(f"{last} knows of no best checkpoint: set save_top_k of ModelCheckpoint, or give last.")
        best = max(states, key=lambda s: s["monitor"] is not None)
        return str(last.parent / os.path.relpath(best["best_model_path"], best["dirpath"]))  # where the run lies now


def main(args: list[str] | None = None, model_class=None, data_class=None) -> CLI:
    """Runs the command line; `args` in place of the process's own."""
    torch.set_flush_denormal(True)  # a loss that saturates leaves gradients of 1e-40, with which a CPU is slow
    import_all()
    from lit_align.algorithms.algorithm import Algorithm
    from lit_align.data.datamodule import AlignData
    from lit_align.diffusion.transition import Transition
    from lit_align.policies.adapters import Adapter
    from lit_align.policies.policy import Policy
    from lit_align.rewards.reward import Reward

    model_class, data_class = model_class or Algorithm, data_class or AlignData
    own = (model_class, data_class, Policy, Adapter, Reward, Transition)
    Parser.bases = (*own, L.Callback, L.Trainer, Optimizer, LRScheduler)
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
