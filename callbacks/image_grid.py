"""Validation samples as pictures."""

import os

import lightning as L
import torch
from lit_align.callbacks.grid import animate, grid, save_png, strip, to_pictures


class ImageGrid(L.Callback):
    """Writes the validation's samples, those of all ranks, as one picture to `<run>/samples/step_<n>.png` (under
    `validate` to `validate.png`) and to TensorBoard (`val/images`). Of a video the picture shows four frames; all
    videos play side by side in a .gif of the same name.

    Args:
        max_images: how many at most, each of at most 512 pixels (a video's frames: 256).
    """

    def __init__(self, max_images: int = 16):
        self.max_images = max_images
        self.cells: list[tuple] = []  # (row number, pictures, prompt)

    def on_validation_start(self, trainer, module) -> None:
        self.cells = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if isinstance(outputs, dict) and "image" in outputs:
            self.fps = outputs.get("fps")
            rows = list(zip(outputs["index"], outputs["image"], outputs["prompt"]))[: self.max_images - len(self.cells)]
            most = 512 if outputs["image"].ndim == 4 else 256
            self.cells += [(index, to_pictures(image, 128, most), prompt) for index, image, prompt in rows]

    def on_validation_end(self, trainer, module) -> None:
        cells = self.cells
        if trainer.world_size > 1:
            gathered = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, cells)
            cells = list({cell[0]: cell for part in gathered for cell in part}.values())
        if not trainer.is_global_zero or not cells:
            return
        cells = sorted(cells, key=lambda cell: cell[0])[: self.max_images]
        films, prompts = [pictures for _, pictures, _ in cells], [prompt for _, _, prompt in cells]
        sheet = grid([strip(film) for film in films], prompts)
        alone = trainer.state.fn == "validate"  # the trainer does not know the checkpoint's step
        name = "validate.png" if alone else f"step_{trainer.global_step:06d}.png"
        path = os.path.join(trainer.default_root_dir, "samples", name)
        save_png(sheet, path)
        if len(films[0]) > 1:
            animate([[film] for film in films], prompts, path.replace(".png", ".gif"), self.fps)
        for logger in trainer.loggers:
            if isinstance(logger, L.pytorch.loggers.TensorBoardLogger):
                pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(
                    sheet.height, sheet.width, 3
                )
                logger.experiment.add_image("val/images", pixels, trainer.global_step, dataformats="HWC")
        if alone:
            print(f"samples: {path}")
