"""A user's own preference pairs."""

import os
from typing import Literal

import torch

from lit_align.data.batch import text_batch
from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.pairs import drop_unreadable
from lit_align.data.tables import check_captions, named_columns, read_table
from lit_align.paths import find


class PreferencePairs(AlignData):
    """Pairs from a .parquet, .csv or .jsonl file or a datasets folder: a PairBatch {"prompt", "win", "lose", ...}.

    An image cell is a path (relative to the file), encoded bytes, or a datasets Image. `index` is the row in the file.

    Args:
        path: the file of training pairs, or a folder that `datasets` reads (an imagefolder, say).
        val_path: the same of held-out pairs, for implicit accuracy.
        prompt_column, win_column, lose_column: where the caption, the preferred and the other image are.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    image_keys = ("win", "lose")
    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        prompt_column: str = "prompt",
        win_column: str = "win",
        lose_column: str = "lose",
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        columns = ("caption", "jpg_0", "jpg_1") if self.smoke else (prompt_column, win_column, lose_column)
        self.paths = {"train": self.training_path(path), "val": None if self.smoke else val_path}
        self.columns = dict(zip(("prompt", "win", "lose"), columns))
        self.on_corrupt = on_corrupt

    def load(self, split: str):
        from datasets import Image, Value

        path = self.paths[split]
        if path is None:
            return None
        table = read_table(path)
        for key, column in self.columns.items():
            if column not in table.column_names:
                found = ", ".join(table.column_names)
                raise ValueError(
                    f"column `{column}` not found in {path}; columns are {found}; set --data.{key}_column."
                )
        rows = named_columns(table, path, self.columns)
        check_captions(rows, self.columns["prompt"])
        folder = os.path.dirname(find(path))
        for key in self.image_keys:
            if rows.features[key] in (Value("string"), Value("large_string")):
                rows = rows.map(lambda name: {key: name and os.path.join(folder, name)}, input_columns=key)
            if isinstance(rows.features[key], Image):
                rows = rows.cast_column(key, Image(decode=False))  # `decode` reads it, and knows the row
        return drop_unreadable(rows, self.image_keys, self.on_corrupt)

    def collate(self, rows: list[dict]) -> dict:
        images = {key: torch.stack([self.image(row, key) for row in rows]) for key in self.image_keys}
        return text_batch(rows) | images

    def image(self, row: dict, key: str) -> torch.Tensor:
        where = f"row {row['index']}, column {self.columns[key]} of {row['file']}"
        return decode(row[key], self.resolution, where)
