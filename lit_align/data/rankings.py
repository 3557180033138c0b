"""Lists of images with scores."""

import os

import torch

from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.pairs import numbered
from lit_align.data.tables import read_table
from lit_align.paths import find


class Rankings(AlignData):
    """Lists from a .parquet or .jsonl file: batches {"prompt", "images" (B, K, 3, H, W), "scores" (B, K, R), "index"}.

    A row holds a prompt, a list of K images (encoded bytes, or paths relative to the file), and for each of R rewards a
    list of K scores, higher is better. Every row must have as many images as the first.

    Args:
        path: the file.
        prompt_column, images_column: where the caption and the images are.
        score_columns: one column for each reward; methods that take one score use their mean.
    """

    images = ("images",)
    example = "checkpoints/shapes-sd/lists/train.parquet"

    def __init__(
        self,
        path: str,
        prompt_column: str = "prompt",
        images_column: str = "images",
        score_columns: list[str] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.path = self.source(path)
        self.columns = [prompt_column, images_column, *(score_columns or ["scores"])]
        if self.smoke:  # the example's own columns, as many
            self.columns = ["prompt", "images", "correct", "partial", "large", "red"][: len(self.columns)]

    def load(self, split: str):
        if split != "train":
            return None
        rows = read_table(self.path)
        for column in self.columns:
            if column not in rows.column_names:
                raise ValueError(
                    f"column `{column}` not found in {self.path}; columns are {', '.join(rows.column_names)}."
                )
        self.size = len(rows[0][self.columns[1]])
        return numbered(rows.select_columns(self.columns), self.path)

    def collate(self, rows: list[dict]) -> dict:
        prompt, images, *scores = self.columns
        batch = {"prompt": [row[prompt] for row in rows], "index": [row["index"] for row in rows]}
        for row in rows:
            lengths = {len(row[column]) for column in (images, *scores)}
            if lengths != {self.size}:
                raise ValueError(
                    f"row {row['index']} of {row['file']} has lists of {sorted(lengths)} entries; {self.size} are due."
                )
        batch["images"] = torch.stack([self._images(row, images) for row in rows])
        batch["scores"] = torch.tensor([[row[column] for column in scores] for row in rows]).transpose(1, 2).float()
        return batch

    def _images(self, row: dict, column: str) -> torch.Tensor:
        folder = os.path.dirname(find(self.path))
        cells = [os.path.join(folder, cell) if isinstance(cell, str) else cell for cell in row[column]]
        where = f"row {row['index']}, column {column} of {row['file']}"
        return torch.stack([decode(cell, self.resolution, where) for cell in cells])
