"""A user's own images with captions."""

import os
from pathlib import Path
from typing import Literal

import torch

from lit_align.data.batch import text_batch
from lit_align.data.datamodule import SMOKE_VIDEOS, AlignData
from lit_align.data.image_files import IMAGES, drop_unreadable, in_folder, stamp_files
from lit_align.data.tables import check_captions, named_columns, read_table, text_encoding
from lit_align.data.videos import VIDEOS
from lit_align.paths import find


class CaptionedImages(AlignData):
    """Images with captions from a folder or a file: an ImageBatch {"image", "prompt", ...}.

    A folder holds the images and either a text file with the caption beside each, of the same name (cat.png, cat.txt),
    or `metadata.csv` or `metadata.jsonl` with a column `file_name` and one of captions (the `imagefolder` format of
    `datasets`). A .parquet, .csv or .jsonl file holds paths relative to it, encoded bytes, or datasets Images. With a
    policy that makes videos, a cell is a video (see data/videos.py), of which the policy's frames are read.

    Args:
        path: the folder or the file.
        image_column: the images' column ("image" is what `datasets` calls it in a folder).
        prompt_column: the captions' column.
        label_column: 1 for a desirable image, 0 for an undesirable one, for KTO; without it there is no `label`.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    image_keys = image_columns = ("image",)
    takes_videos = True
    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        prompt_column: str = "text",
        label_column: str | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.smoke:
            image_column, prompt_column, label_column = "jpg_0", "caption", label_column and "label_0"
        self.path, self.on_corrupt = self.training_path(path), on_corrupt
        self.columns = {"prompt": prompt_column, "image": image_column}
        self.columns |= {"label": label_column} if label_column else {}

    def load(self, split: str):
        if split != "train":
            return None
        if self.smoke and self.num_frames:
            self.path = SMOKE_VIDEOS
        table = read_captions(self.path, self.columns, VIDEOS if self.num_frames else IMAGES) or read_table(self.path)
        rows = named_columns(table, self.path, self.columns)
        check_captions(rows, self.columns["prompt"])
        for i, label in enumerate(rows["label"][:] if "label" in self.columns else ()):
            if not isinstance(label, int | float) or not 0 <= label <= 1:
                column = self.columns["label"]
                raise ValueError(f"row {i}, column {column} of {self.path} holds {label!r}: give 1 or 0.")
        rows = in_folder(rows, ("image",), os.path.dirname(find(self.path)))
        images = {"image": self.columns["image"]}
        rows = stamp_files(rows, images, self.on_corrupt)
        if self.num_frames:
            return self.long_enough(rows, images, split, self.on_corrupt)
        return drop_unreadable(rows, ("image",), self.on_corrupt)

    def collate(self, rows: list[dict]) -> dict:
        where = [f"row {row['index']}, column {self.columns['image']} of {row['file']}" for row in rows]
        image = torch.stack([self.picture(row, "image", place) for row, place in zip(rows, where)])
        label = {"label": torch.tensor([float(row["label"]) for row in rows])} if "label" in self.columns else {}
        return text_batch(rows) | {"image": image} | label


def read_captions(path: str, columns: dict[str, str], endings: tuple[str, ...]):
    """A folder's images (files with these endings) with the captions of the text files beside them, as a
    datasets.Dataset with the names `columns` {"image", "prompt"}; None if it has a metadata file, or no text file.
    Raises ValueError at an image without one."""
    from datasets import Dataset

    folder = Path(find(path))
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    captions = {file.with_suffix("") for file in files if file.suffix == ".txt"}
    if not captions or any(file.stem == "metadata" for file in files):
        return None
    images = [file for file in files if file.suffix.lower() in endings]
    if bare := [file for file in images if file.with_suffix("") not in captions]:
        raise ValueError(f"{bare[0]} has no caption: write it into {bare[0].with_suffix('.txt').name} beside it.")
    texts = [file.with_suffix(".txt") for file in images]
    prompts = [file.read_text(text_encoding(str(file), file)).strip() for file in texts]
    return Dataset.from_dict({columns["image"]: list(map(str, images)), columns["prompt"]: prompts}) if images else None
