"""The hyperparameters in a checkpoint, from which `load_from_checkpoint` builds a module again."""

import inspect

import lightning as L
import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.parsing import collect_init_args


def save(module: L.LightningModule) -> None:
    """Call it in the constructor of a base class. Under the command line the hyperparameters are the parsed
    configuration of the module; else they are those of its arguments that are numbers, strings or lists of such."""
    if _given_hyperparameters.get() is not None:
        module.save_hyperparameters()
        return
    arguments = collect_init_args(inspect.currentframe().f_back, [], classes=(L.LightningModule,))[-1]
    module.save_hyperparameters({name: value for name, value in arguments.items() if is_plain(value)})


def is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def read(cls: type, checkpoint_path, given: dict) -> dict:
    """A checkpoint's hyperparameters. Raises ValueError if they and the arguments `given` lack the policy."""
    saved = torch.load(checkpoint_path, map_location="cpu", weights_only=True).get("hyper_parameters", {})
    if "policy" in {*saved, *given}:
        return saved
    known, needed = {*saved, *given, "self"}, []
    for base in cls.__mro__:
        for name, p in inspect.signature(base.__init__).parameters.items():
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in {*known, *needed}:
                needed.append(name)
    raise ValueError(
        f"{checkpoint_path} is of a module built in Python, whose objects are not in a checkpoint: call "
        f"{cls.__name__}.load_from_checkpoint(path, {', '.join(f'{name}=...' for name in needed)})."
    )
