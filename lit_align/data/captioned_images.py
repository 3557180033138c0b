"""A user's own images with captions."""

import os
from typing import Literal

import torch

from lit_align.data.batch import text_batch
from lit_align.data.datamodule import SMOKE_VIDEOS, AlignData
from lit_align.data.image_files import drop_unreadable, in_folder, stamp_files
from lit_align.data.tables import check_captions, named_columns, read_table
from lit_align.paths import find


class CaptionedImages(AlignData):
    """Images with captions from a folder or a file: an ImageBatch {"image", "prompt", ...}.

    A folder holds the images and `metadata.csv` or `metadata.jsonl` with a column `file_name` and one of captions (the
    `imagefolder` format of `datasets`). A .parquet, .csv or .jsonl file holds paths relative to it, encoded bytes, or
    datasets Images. With a policy that makes videos, a cell is a video (see data/videos.py), of which the policy's frames
    are read.

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
        rows = named_columns(read_table(self.path), self.path, self.columns)
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
