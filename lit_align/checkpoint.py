"""Checkpoint files that are whole or absent."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_align.paths import unfinished


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, under a name of this process alone, flushes to the disk, and renames: a full disk
    (OSError) or a killed writer leaves the previous file as it was. Reading runs no pickled code unless asked to
    (weights_only=False)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any | None = None) -> None:
        part = unfinished(path)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):  # says which disk is full
                error.filename = str(path)
            raise
        os.replace(part, path)

    def load_checkpoint(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        check_whole(path)
        return super().load_checkpoint(path, *args, **kwargs)


def check_whole(path: str | Path) -> None:
    """Raises ValueError if a checkpoint file is cut short."""
    if os.path.isfile(path) and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is cut short (its {os.path.getsize(path)} bytes lack its end): start from another one."
        )


def peek(path: str | Path) -> dict[str, Any]:
    """A checkpoint with its tensors left on the disk; of a sharded one what is beside the tensors."""
    check_whole(path)
    file = Path(path, "meta.pt") if os.path.isdir(path) else path
    return torch.load(file, weights_only=True, mmap=True, map_location="cpu")


def position(path: str | Path) -> tuple[int, int]:
    """(optimizer steps, epochs) that a checkpoint was saved after."""
    found = peek(path)
    return found["global_step"], found["epoch"]
