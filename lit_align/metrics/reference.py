"""The base of the metrics that compare samples with reference images."""

from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from lit_align.data.images import to_upright_rgb
from lit_align.metrics.features import Features
from lit_align.metrics.metric import ImageMetric
from lit_align.paths import find

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class ReferenceMetric(ImageMetric):
    """Base of the metrics of samples against the images of a folder. A subclass gives `add`.

    The reference is read once, at the first `update`, each process a part of it; `reset` keeps what was read.

    Args:
        reference: a folder with images, and images below it.
        features: what turns images into features; its name is a part of the metric's.
        size: side to which references are brought (central square, bicubic) before the features are taken; None:
            as they are. Published FIDs on COCO have 256, or the samples' size.
    """

    prefix: str

    def __init__(self, reference: str, features: Features, size: int | None = None):
        super().__init__()
        self.reference, self.features, self.size, self.was_read = reference, features, size, False
        self.name = f"{self.prefix}_{features.name}"

    @abstractmethod
    def add(self, images: Tensor, real: bool) -> None:
        """Takes images (N, 3, H, W) in [0, 1] as samples, or with `real` as references."""

    def update(self, images: Tensor, prompts: list[str]) -> None:
        self.read()
        self.add(images, real=False)

    def read(self) -> None:
        """Takes this process's part of the reference, unless it has."""
        if self.was_read:
            return
        ranks, rank = (
            (torch.distributed.get_world_size(), torch.distributed.get_rank())
            if torch.distributed.is_available() and torch.distributed.is_initialized()
            else (1, 0)
        )
        files = image_files(self.reference)
        for file in files[rank::ranks]:
            self.add(read_image(file, self.size).to(self.device)[None], real=True)
        self.was_read = True


def image_files(folder: str) -> list[Path]:
    """Every image below a folder, sorted. ValueError if there is none."""
    files = sorted(path for path in Path(find(folder)).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} has no images ({', '.join(SUFFIXES)}): give a folder of them.")
    return files


def read_image(file: str | Path, size: int | None = None) -> Tensor:
    """An image file as (3, H, W) in [0, 1]; with `size` its central square of that side."""
    import numpy as np

    from lit_align.rewards.preprocess import crop

    pixels = torch.from_numpy(np.asarray(to_upright_rgb(str(file), str(file))).copy()).permute(2, 0, 1).float() / 255
    return crop(pixels[None], size)[0] if size else pixels
