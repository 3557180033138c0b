"""Which folder a run gets: that of the same configuration, else a new one, named after what differs.

A run's folder is known by its `config.yaml`, the configuration that made it. A resumed run that changes it keeps the
one before as `config.1.yaml`, `config.2.yaml` and so on.
"""

import fcntl
import os
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lit_align import configs
from lit_align.config_difference import differences, folder_name, tell, training
from lit_align.paths import unfinished

RESUMED = ("model.optimizer", "model.lr_scheduler", "model.max_grad_norm", "trainer.")  # may change when a run goes on


def records(folder: Path) -> list[Path]:
    """The files with the configurations that made a run, the present one first; none of a folder without a run."""
    if not (folder / "config.yaml").is_file():
        return []
    return [folder / "config.yaml", *sorted(folder.glob("config.[0-9]*.yaml"))]


def runs(folder: Path) -> list[Path]:
    """The folder, if it is a run's, and those of the runs below it that differ by flags."""
    below = [run for part in sorted(folder.glob("*=*/")) for run in runs(part)]
    return [folder, *below] if records(folder) else below


def difference(folder: Path, config: dict, free: tuple[str, ...] = ()) -> dict[str, tuple]:
    """What a `training` part changes of the configuration of a run's folder, the nearest that it has had, except
    options that begin with one of `free`."""
    told = (differences(training(configs.read(path)), config) for path in records(folder))
    return min(({k: v for k, v in found.items() if not k.startswith(free)} for found in told), key=len)


def place(folder: Path, config: dict, free: tuple[str, ...] = ()) -> Path:
    """The folder itself, unless a run of another configuration lies there; then the one below it that is named after
    the difference."""
    while records(folder) and (found := difference(folder, config, free)):
        folder = folder / folder_name(found)
    return folder


def of_fit(root: Path, flags: dict[str, tuple], config: dict, ckpt_path: str | None) -> Path:
    """The folder to train in. With a checkpoint of a run that differs in optimizer, schedule or the Trainer's options
    alone, that run's.

    Args:
        root: the folder of the config files.
        flags: what the flags change of the config files.
        config: the `training` part of this command.
        ckpt_path: last, best, a file, or None.
    """
    folder = place(root / folder_name(flags), config)
    of_run = ckpt_path in ("last", "best")
    if not ckpt_path or of_run and records(folder):
        return folder
    kept = {option: change for option, change in flags.items() if not option.startswith(RESUMED)}
    before = place(root / folder_name(kept), config, RESUMED)
    if before == folder or not records(before):
        return folder
    if not of_run and not Path(ckpt_path).resolve().is_relative_to(before.resolve()):
        return folder
    rank_zero_info(f"continues the run in {before}, which had {tell(difference(before, config))}")
    return before


def of_weights(root: Path, flags: dict[str, tuple], config: dict, ckpt_path: str | None, exports: bool) -> Path:
    """The folder of the run whose weights are tested, sampled from or exported; arguments as in `of_fit`. Raises
    ValueError if `ckpt_path` is last or best, and there are runs but none of this configuration."""
    folder = place(root / folder_name(flags), config)
    if ckpt_path not in ("last", "best"):
        owner = Path(ckpt_path).absolute().parent.parent if ckpt_path else folder
        if not ckpt_path or not records(owner):
            return folder
        if found := for_weights(difference(owner, config), exports):
            rank_zero_info(f"{ckpt_path} is of a run with {tell(found)}")
        return Path(os.path.relpath(owner)) if owner.is_relative_to(Path.cwd()) else owner
    changes = {run: difference(run, config) for run in runs(root)}
    if not changes or changes.get(folder) == {}:
        return folder
    serious = {run: for_weights(found, exports) for run, found in changes.items()}
    alike = [run for run, found in serious.items() if not found]
    if len(alike) == 1:
        had = f", which had {tell(changes[alike[0]])}" if changes[alike[0]] else ""
        rank_zero_info(f"takes the run in {alike[0]}{had}")
        return alike[0]
    nearest = sorted(alike or changes, key=lambda run: (len(serious[run]), len(changes[run])))
    found = "; ".join(f"{run} has {tell(changes[run])}" for run in nearest[:3])
    more = f"; and {len(nearest) - 3} more" if nearest[3:] else ""
    raise ValueError(
        f"there is no run of this configuration in {root}. {found}{more}. Give that run's flags, or --config "
        f"{nearest[0]}/config.yaml in place of all others."
    )


def for_weights(found: dict[str, tuple], exports: bool) -> dict[str, tuple]:
    """The differences that matter to the use of a run's weights: not the precision, and of callbacks only those that
    the run had and that are missing now, such as an average of the weights; an export finds that in the checkpoint."""

    def free(option: str, now) -> bool:
        callback = option.startswith("trainer.callbacks.")
        return option == "trainer.precision" or callback and (exports or now is not None or option.count(".") > 2)

    return {option: (before, now) for option, (before, now) in found.items() if not free(option, now)}


def check(folder: Path, config: dict, command: str, ckpt_path: str | None) -> None:
    """Raises ValueError if the folder that was asked for holds a run of another configuration."""
    fits = command == "fit"
    if not records(folder) or not (fits or ckpt_path in ("last", "best")):
        return
    found = difference(folder, config)
    if ckpt_path:
        callbacks = {} if fits else for_weights(found, command == "export")
        found = {k: v for k, v in found.items() if not k.startswith(RESUMED) or k in callbacks and "callbacks" in k}
    if found:
        instead = "give another --trainer.default_root_dir" if fits else "give that run's flags"
        raise ValueError(f"{folder} holds a run with {tell(found)}: {instead}, or --config {folder}/config.yaml.")


@contextmanager
def locked(folder: Path, doing: str = "training", option: str = "--trainer.default_root_dir"):
    """Inside, this process is the only one that writes to the folder. The system frees the lock of a process that ends,
    however it ends. Raises ValueError if another process has it; the sentence says what that is `doing`, and names the
    option by which the folder is given."""
    file = folder / ".lock"
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(file, "a+")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            who = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(f"{who} is {doing} in {folder}: wait for it, stop it, or give another {option}.") from None
        except OSError as error:
            rank_zero_info(f"{folder}: its file system has no locks ({error.strerror}); start no second fit in it")
        if file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):  # not one that was just freed
            break
        lock.close()
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.close()
        for part in made:  # empty if the run did not start
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()


class KeepConfig(L.Callback):
    """After the first optimizer step, writes the configuration to `config.yaml`. A run that starts anew keeps the last
    checkpoint of the one before as `before-last.ckpt`; one that goes on keeps a configuration that it changes as
    `config.<n>.yaml`.

    Args:
        text: the configuration, YAML.
        config: the `training` part of it.
    """

    def __init__(self, text: str, config: dict):
        self.text, self.config, self.start = text, config, 0

    def on_train_start(self, trainer, module) -> None:
        self.start, folder = trainer.global_step, Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            for pattern in ("checkpoints/*.part", "policy.*.part"):  # of a killed process, as the folder is locked
                for part in folder.glob(pattern):
                    shutil.rmtree(part) if part.is_dir() else part.unlink()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self.text and trainer.is_global_zero and trainer.global_step > self.start:
            self.keep(Path(trainer.default_root_dir), trainer)
            self.text = ""

    def keep(self, folder: Path, trainer) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        made = records(folder)
        if self.start == 0:
            self.set_aside(trainer)
            for file in made[1:]:
                file.unlink()
        elif made and differences(training(configs.read(made[0])), self.config):
            made[0].rename(folder / f"config.{len(made)}.yaml")
        part = unfinished(folder / "config.yaml")
        part.write_text(self.text)
        part.replace(folder / "config.yaml")

    @staticmethod
    def set_aside(trainer) -> None:
        """Renames the last checkpoints that are there, which may be of a later step than those to come."""
        for callback in trainer.checkpoint_callbacks:
            for last in callback._find_last_checkpoints(trainer) if isinstance(callback, ModelCheckpoint) else ():
                kept = Path(last).with_name(f"before-{Path(last).name}")
                if kept.is_dir() and not kept.is_symlink():  # sharded
                    shutil.rmtree(kept)
                Path(last).replace(kept)
                rank_zero_info(f"training has started anew: the last checkpoint of the run before is {kept}")
