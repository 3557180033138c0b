"""The command line: LightningCLI with configs found by name, a run folder, and errors of one sentence."""

import importlib
import os
import pkgutil
import signal
import sys
from argparse import ArgumentError
from contextlib import ExitStack
from inspect import signature
from pathlib import Path

import lightning as L
import torch
import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_align import configs, run_folder
from lit_align.callbacks import Comparison, Progress, SampleWriter, SaveOnInterrupt, Summary
from lit_align.checkpoint import AtomicCheckpointIO, peek, position
from lit_align.cli_errors import Parser, of_the_user
from lit_align.config_difference import differences, training
from lit_align.overview import tools
from lit_align.paths import PACKAGE, find
from lit_align.start import missing_devices, training_amount


def import_all() -> None:
    """Imports every module that defines classes a config can name, so that short class names are known."""
    importlib.import_module("lit_align.callbacks")
    for name in sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py")):
        if name not in ("studies", "tools"):
            package = importlib.import_module(f"lit_align.{name}")
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)


class ConfigFile(ActionConfigFile):
    """`--config`, given by name."""

    def __call__(self, parser, cfg, values, option_string=None):
        try:
            path = configs.find_config(values)
        except FileNotFoundError as error:
            parser.error(str(error), error)
        if path.parent == configs.CONFIGS / "with" and not cfg.get("config") and not cfg.get("model"):
            parser.error(f"{values} changes a recipe: name the recipe first, --config <recipe>.yaml --config {values}.")
        values = str(path)
        parser.reading = f"{values}: "
        super().__call__(parser, cfg, values, option_string)
        parser.reading = ""


TINY = {"pretrained": "tiny", "dtype": "float32", "resolution": 32, "num_frames": 9}
TINY |= {"cell": 2, "blend_cell": 2, "stop": 0.6}
TINY |= dict.fromkeys(("vae", "lora", "quantize", "checkpoint", "route"))
FEW = {"samples_per_prompt": 2, "updates": 1, "accumulate": 1, "branches": 2, "branching": 2}
FEW_SAMPLED = FEW | {"steps": 4, "n": 2}  # in a sampler, and in what it holds
FEW_SAMPLED |= {"populations": 2, "noises": 2, "candidates": 2, "ode_steps": 2, "starts": 4, "budget": 12}
FEW_SAMPLED |= {"iterations": 2, "rounds": 1, "final_updates": 1, "refinements": 1, "perturbed": 2}
FEW_SAMPLED["skip_layers"] = 1


def shrink(config, few: dict = FEW) -> None:
    """Gives tiny random weights to whatever in a model's config loads some, policies and rewards, and little to do."""
    for key, value in vars(config).items():
        if key in TINY:
            config[key] = TINY[key]
        elif key == "teachers":
            config[key] = dict.fromkeys(value, "tiny")
        elif key in few and isinstance(value, int):
            config[key] = min(value, few[key])
        elif key in few and isinstance(value, list):
            config[key] = [min(n, few[key]) for n in value]
        values = value.values() if isinstance(value, dict) else value
        for part in values if isinstance(value, list | dict) else [value]:
            if isinstance(part, Namespace):
                shrink(part, FEW_SAMPLED if key == "sampler" else few)


def as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


class CLI(LightningCLI):
    """LightningCLI for this library. Flags and files win over what a checkpoint recorded."""

    def subcommands(self) -> dict:
        """The one that was typed: a parser of each takes seconds to build."""
        own = {"model", "datamodule"}
        every = LightningCLI.subcommands() | {"export": own, "estimate": own}
        return {name: skip for name, skip in every.items() if name in self.typed[:1]} or every

    def init_parser(self, **kwargs):
        parser = super().init_parser(**{"prog": "python -m lit_align", **kwargs})
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

    def plain(self, config) -> dict:
        """A parsed configuration as plain dicts, lists and values."""
        return yaml.load(self.as_yaml(config), configs.Loader)

    def as_yaml(self, config) -> str:
        return self._parser(self.subcommand).dump(config, skip_unset=False, skip_validation=True)

    def of_the_files(self) -> dict | None:
        """The configuration of the --config files alone; None if they do not make a whole one."""
        files = [word for file in self._get(self.config, "config") or [] for word in ("--config", str(file))]
        self.parser.exit_on_error = False
        try:
            config = self.parser.parse_args([self.subcommand, *files])[self.subcommand]
        except ArgumentError:
            return None
        finally:
            self.parser.exit_on_error, self._parser(self.subcommand).reading = True, ""
        shrink_if_asked(config)
        return self.plain(config)

    def run_folder(self, ckpt_path: str | None) -> Path:
        """`checkpoints/<config>[+<overlay>...]` under the working directory, after the names of the --config files, and
        below it a folder named after what flags change of the training: see `lit_align.run_folder`. Exactly the typed
        --trainer.default_root_dir."""
        given = self._get(self.config, "trainer").default_root_dir
        if given and any(word.startswith("--trainer.def") for word in self.typed):  # flags may be cut short
            run_folder.check(Path(given), self.training, self.subcommand, ckpt_path)
            return Path(given)
        files = [Path(str(f)) for f in self._get(self.config, "config") or []]
        words = {word.split("=")[0] for word in self.typed if word.startswith("--")} - {"--config", "--ckpt_path"}
        flags = {}
        if files and words:
            of_files = self.of_the_files()
            flags = differences(training(of_files), self.training) if of_files else {}
        root = Path(given or named_after(files))
        if self.subcommand == "fit":
            return run_folder.of_fit(root, flags, self.training, ckpt_path)
        return run_folder.of_weights(root, flags, self.training, ckpt_path, self.subcommand == "export")

    def before_instantiate_classes(self) -> None:
        config, fits = self.config[self.subcommand], self.subcommand == "fit"
        self.parser.check_makers(config)
        shrink_if_asked(config)
        if self.subcommand == "estimate":
            self.trainer_class.without_weights(config)
            return
        self.training = training(self.plain(config))
        if self.subcommand == "export":
            self.trainer_class.without_gpu(config)
        trainer = config.trainer
        if sentence := missing_devices(trainer.accelerator, trainer.devices):
            self.parser.error(sentence)
        try:
            folder = self.run_folder(config.ckpt_path)
            if fits and rank_zero_only.rank == 0:
                self.held.enter_context(run_folder.locked(folder))
        except ValueError as error:
            self.parser.end(str(error), 2)
        trainer.default_root_dir = str(folder)  # so that the saved config names it
        if fits and not config.ckpt_path and run_folder.records(folder) and not any(folder.glob("hpc_ckpt*")):
            rank_zero_info(
                f"{folder} holds a run of this configuration: training starts anew and overwrites it; "
                "--ckpt_path last would continue it"
            )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            getattr(self.model, "initialise", lambda: None)()
        except (ValueError, OSError, MisconfigurationException) as error:  # what a constructor says of its arguments
            self.parser.end(self.parser.sentence(str(error)), 2)

    def instantiate_trainer(self, **kwargs):
        config = self._get(self.config_init, "trainer")
        if config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(config.default_root_dir, name="", version="")
        plugins = as_list(config.plugins)
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        kwargs["callbacks"] = callbacks = [*as_list(config.callbacks), SaveOnInterrupt()]
        if self.subcommand == "fit" and not config.fast_dev_run:
            callbacks.append(run_folder.KeepConfig(self.as_yaml(self.config.fit), self.training))
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(Progress())
        if config.enable_model_summary is not False and not any(isinstance(c, ModelSummary) for c in callbacks):
            callbacks.append(Summary(self.about))
        writes = any(isinstance(c, SampleWriter | BasePredictionWriter) for c in callbacks)
        if self.subcommand == "predict" and not writes:
            callbacks.append(SampleWriter())
        if self.subcommand == "test" and not any(isinstance(c, Comparison) for c in callbacks):
            callbacks.append(Comparison())
        return super().instantiate_trainer(**kwargs)

    def about(self) -> list[str]:
        """Lines on a run that the configuration tells."""
        config = self.config[self.subcommand]
        lines, name = [], lambda part: part.class_path.rsplit(".", 1)[-1]
        if policy := config.model.init_args.get("policy"):
            adapter = policy.init_args.get("adapter")
            how = f"adapter {name(adapter)}" if adapter else "adapter Full"
            reference = "with a reference" if self.model.policy.has_reference else "without a reference"
            lines.append(f"policy {name(policy)} from {policy.init_args.pretrained}, {how}, {reference}")
        lines.append(f"data {name(config.data)}, seed {config.seed_everything}")
        return [*lines, training_amount(self.trainer, self.model, self.datamodule)]

    def after_instantiate_classes(self) -> None:
        """Refuses what the Trainer cannot do for the method, and makes a path of `--ckpt_path last|best`: a checkpoint
        of the run that `fit` with the same --config left."""
        config, t, who = self.config_init[self.subcommand], self.trainer, type(self.model).__name__
        if self.subcommand == "estimate":
            return
        if self.subcommand == "fit" and not is_overridden("training_step", self.model):
            self.parser.error(f"{who} trains nothing: use validate, test or predict.")
        if self.subcommand == "fit" and not self.model.automatic_optimization:
            for flag, given, instead in (
                ("gradient_clip_val", t.gradient_clip_val, "model.max_grad_norm"),
                ("accumulate_grad_batches", t.accumulate_grad_batches != 1, "data.batch_size"),
            ):
                if given:
                    self.parser.error(
                        f"{who} makes its own optimizer steps: set --{instead} in place of --trainer.{flag}."
                    )
        self.refuse_nothing()
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = self.of_run(config.ckpt_path)
        elif config.ckpt_path:
            config.ckpt_path = find(config.ckpt_path)
            if not Path(config.ckpt_path).exists():
                self.parser.error(f"there is no checkpoint {config.ckpt_path}; give last, best or a file.")

    def refuse_nothing(self) -> None:
        """Refuses a command whose Trainer does nothing: 0 batches, steps or epochs."""
        stage = {"fit": "train", "validate": "val"}.get(self.subcommand, self.subcommand)
        names = [f"limit_{stage}_batches", *(("max_steps", "max_epochs") if stage == "train" else ())]
        if zero := next((name for name in names if getattr(self.trainer, name, None) == 0), None):
            self.parser.error(f"trainer.{zero} is 0, with which {self.subcommand} does nothing: give another value.")

    def of_run(self, which: str) -> str:
        """The path of the run folder's last checkpoint, that of the most steps, or of the best that one knows of."""
        callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        found = [path for c in callbacks for path in c._find_last_checkpoints(self.trainer)]
        if not found and self.subcommand == "fit" and which == "last":
            return which  # Lightning says that there is nothing to resume and starts: for jobs that are requeued
        if not found:
            folder = self.trainer.default_root_dir
            self.parser.error(
                f"there is no last checkpoint in {folder}: run fit with the same --config and flags first."
            )
        last = Path(max(found, key=position) if len(found) > 1 else found[0])
        if which == "last":
            return str(last)
        states = [s for name, s in peek(last)["callbacks"].items() if name.startswith("ModelCheckpoint")]
        states = [s for s in states if s["best_model_path"]]
        if not states:
            self.parser.error(f"{last} knows of no best checkpoint: set save_top_k of ModelCheckpoint, or give last.")
        best = max(states, key=lambda s: s["monitor"] is not None)
        return str(last.parent / os.path.relpath(best["best_model_path"], best["dirpath"]))  # where the run lies now


def shrink_if_asked(config) -> None:
    if config.data.init_args.get("smoke"):
        shrink(config.model)


def named_after(files: list[Path]) -> Path:
    """`checkpoints/<config>[+<overlay>...]`."""
    if not files:
        return Path("checkpoints/run")
    inside = files[0].is_relative_to(configs.CONFIGS)
    first = files[0].relative_to(configs.CONFIGS).with_suffix("") if inside else files[0].stem
    return Path("checkpoints", "+".join([str(first), *(f.stem for f in files[1:])]))


def run_tool(name: str, args: list[str]) -> None:
    """Calls the function `name` of lit_align/tools/<name>.py; its signature and docstring are the command line. The
    value of its first option may be typed without the option's name; `--config` names files of options."""
    function = getattr(importlib.import_module(f"lit_align.tools.{name}"), name)
    parser = Parser(prog=f"python -m lit_align {name}", description=(function.__doc__ or "").split("\n\n")[0])
    parser.add_argument("--config", action=ConfigFile, help="a file of these options, by name or path")
    parser.add_function_arguments(function, as_group=False, sub_configs=True)
    if args and not args[0].startswith("-"):
        args = [f"--{next(iter(signature(function).parameters))}", *args]
    given = parser.parse_args(args)
    given.pop("config")
    if given.get("smoke"):
        shrink(given)
    try:
        given = parser.instantiate(given)
    except (ValueError, OSError) as error:  # what a constructor says of its arguments
        parser.end(parser.sentence(str(error)), 2)
    function(**vars(given))


def main(args: list[str] | None = None, model_class=None, data_class=None) -> CLI | None:
    """Runs the command line; `args` in place of the process's own."""
    torch.set_flush_denormal(True)  # a loss that saturates leaves gradients of 1e-40, with which a CPU is slow
    import_all()
    from lit_align.algorithms.sampling import Sampling
    from lit_align.data.datamodule import AlignData
    from lit_align.diffusion.hook import Hook
    from lit_align.diffusion.sampler import Sampler
    from lit_align.diffusion.transition import Transition
    from lit_align.metrics.features import Features
    from lit_align.metrics.metric import ImageMetric
    from lit_align.policies.adapters import Adapter
    from lit_align.policies.policy import Policy
    from lit_align.rewards.reward import Reward
    from lit_align.rewards.step_reward import StepReward
    from lit_align.steering.language_model import LanguageModel
    from lit_align.tools.estimate import Trainer

    typed = sys.argv[1:] if args is None else list(args)
    if debug := "--debug" in typed:
        (sys.argv if args is None else args).remove("--debug")
    CLI.typed = Parser.typed = typed = [word for word in typed if word != "--debug"]
    model_class, data_class = model_class or Sampling, data_class or AlignData
    own = (model_class, data_class, Policy, Adapter, Reward, StepReward, Sampler, Hook, Transition)
    own += (ImageMetric, Features, LanguageModel)
    Parser.bases, Parser.debug = (*own, L.Callback, L.Trainer, Optimizer, LRScheduler), debug
    try:
        if typed and typed[0] in tools():
            return run_tool(typed[0], typed[1:])
        with ExitStack() as CLI.held:  # the lock of a run's folder
            return CLI(
                model_class,
                data_class,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=42,
                auto_configure_optimizers=False,
                trainer_class=Trainer,
                parser_class=Parser,
                trainer_defaults={"inference_mode": False},  # steered sampling takes gradients
                save_config_callback=None,  # KeepConfig does it
                args=args,
            )
    except SIGTERMException as error:  # Lightning would leave with 0, and a scheduler would see success
        raise SystemExit(128 + signal.SIGTERM) from error
    except Exception as error:
        if not of_the_user(error):
            raise
        Parser().end(str(error), 1)
