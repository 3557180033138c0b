"""Validation samples as pictures."""

import os

import lightning as L
import torch
from lit_align.callbacks.grid import grid, save_png, to_pil


class ImageGrid(L.Callback):
    """Writes the validation's samples as one picture to `<run>/samples/step_<n>.png` and to TensorBoard (`val/images`).

    Args:
        max_images: how many at most.
    """

    def __init__(self, max_images: int = 16):
        self.max_images = max_images
        self.cells: list[tuple] = []

    def on_validation_start(self, trainer, module) -> None:
        self.cells = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.is_global_zero and outputs and "image" in outputs:
            room = self.max_images - len(self.cells)
            self.cells += list(zip(outputs["image"], outputs["prompt"]))[:room]

    def on_validation_end(self, trainer, module) -> None:
        if not self.cells:
            return
        sheet = grid([[to_pil(image, 128)] for image, _ in self.cells], [prompt for _, prompt in self.cells])
        save_png(sheet, os.path.join(trainer.default_root_dir, "samples", f"step_{trainer.global_step:06d}.png"))
        for logger in trainer.loggers:
            if isinstance(logger, L.pytorch.loggers.TensorBoardLogger):
                pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(
                    sheet.height, sheet.width, 3
                )
                logger.experiment.add_image("val/images", pixels, trainer.global_step, dataformats="HWC")
