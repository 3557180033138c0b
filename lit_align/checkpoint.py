"""Checkpoint files that are whole or absent."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes `<path>.part` beside the target, flushes it to the disk, and renames it: a full disk (OSError) or a killed
    writer leaves the previous file as it was. Reading runs no pickled code unless asked to (weights_only=False)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any | None = None) -> None:
        part = Path(f"{path}.part")
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
        if os.path.isfile(path) and not zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} is cut short (its {os.path.getsize(path)} bytes lack its end): start from another one."
            )
        return super().load_checkpoint(path, *args, **kwargs)
