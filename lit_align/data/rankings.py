"""Lists of images with scores."""

import os

import torch

from lit_align.data.batch import text_batch
from lit_align.data.datamodule import AlignData
from lit_align.data.image_files import in_folder, stamp_files
from lit_align.data.images import decode
from lit_align.data.tables import check_captions, named_columns, read_table
from lit_align.paths import find


class Rankings(AlignData):
    """Lists from a .parquet or .jsonl file: batches {"prompt", "images" (B, K, 3, H, W), "scores" (B, K, R), ...}.

    A row holds a prompt, a list of K images (encoded bytes, or paths relative to the file), and for each of R rewards a
    list of K scores, higher is better. Every row must have as many images as the first.

    Args:
        path: the file.
        prompt_column, images_column: where the caption and the images are.
        score_columns: one column for each reward; methods that take one score use their mean.
    """

    image_keys = ("images",)
    smoke_file = "checkpoints/shapes-sd/lists/train.parquet"

    def __init__(
        self,
        path: str,
        prompt_column: str = "prompt",
        images_column: str = "images",
        score_columns: list[str] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.path = self.training_path(path)
        scores = score_columns or ["scores"]
        if self.smoke:  # the file's own columns, as many
            prompt_column, images_column = "prompt", "images"
            scores = ["correct", "partial", "large", "red"][: len(scores)]
        self.score_keys = [f"scores_{i}" for i in range(len(scores))]
        self.columns = {"prompt": prompt_column, "images": images_column, **dict(zip(self.score_keys, scores))}

    def load(self, split: str):
        if split != "train":
            return None
        rows = named_columns(read_table(self.path), self.path, self.columns)
        check_captions(rows, self.columns["prompt"])
        self.size = len(rows[0]["images"] or ())
        rows = in_folder(rows, ("images",), os.path.dirname(find(self.path)))
        return stamp_files(rows, {"images": self.columns["images"]}, "error")

    def collate(self, rows: list[dict]) -> dict:
        for row in rows:
            lengths = {len(row[key] or ()) for key in ("images", *self.score_keys)}
            where = f"row {row['index']} of {row['file']}"
            if lengths != {self.size}:
                raise ValueError(f"{where} has lists of {sorted(lengths)} entries; {self.size} are due.")
            if any(score is None for key in self.score_keys for score in row[key]):
                raise ValueError(f"{where} lacks a score: give a number for each image.")
        scores = torch.tensor([[row[key] for key in self.score_keys] for row in rows])  # (B, R, K)
        images = torch.stack([self.images(row) for row in rows])
        return text_batch(rows) | {"images": images, "scores": scores.transpose(1, 2).float()}

    def images(self, row: dict) -> torch.Tensor:
        """The K images of a row, (K, 3, H, W)."""
        where = f"row {row['index']}, column {self.columns['images']} of {row['file']}"
        return torch.stack([decode(cell, self.resolution, where) for cell in row["images"]])
