"""A user's own preference pairs."""

import os
from typing import Literal

import torch

from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.pairs import drop_unreadable, numbered
from lit_align.data.tables import read_table
from lit_align.paths import find


class PreferencePairs(AlignData):
    """Pairs from a .parquet, .csv or .jsonl file or a datasets folder: batches {"prompt", "win", "lose", "index"}.

    An image cell is a path (relative to the file), encoded bytes, or a datasets Image. `index` is the row in the file.

    Args:
        path: the file of training pairs, or a folder that `datasets` reads (an imagefolder, say).
        val_path: the same of held-out pairs, for implicit accuracy.
        prompt_column, win_column, lose_column: where the caption, the preferred and the other image are.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    images = ("win", "lose")
    example = "checkpoints/shapes-sd/pairs/train.parquet"

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
        self.paths = {"train": self.source(path), "val": None if self.smoke else val_path}
        self.columns = dict(zip(("prompt", "win", "lose"), columns))
        self.on_corrupt = on_corrupt

    def load(self, split: str):
        from datasets import Image, Value

        path = self.paths[split]
        if path is None:
            return None
        rows = read_table(path)
        for key, column in self.columns.items():
            if column not in rows.column_names:
                found = ", ".join(rows.column_names)
                mend = f"set --data.{key}_column"
                raise ValueError(f"column `{column}` not found in {path}; columns are {found}; {mend}.")
        rows = rows.select_columns(list(self.columns.values()))
        folder = os.path.dirname(find(path))
        for column in (self.columns[key] for key in self.images):
            if rows.features[column] in (Value("string"), Value("large_string")):
                rows = rows.map(lambda name: {column: name and os.path.join(folder, name)}, input_columns=column)
            if isinstance(rows.features[column], Image):
                rows = rows.cast_column(column, Image(decode=False))  # `decode` reads it, and knows the row
        rows = numbered(rows, path)
        return drop_unreadable(rows, tuple(self.columns[key] for key in self.images), self.on_corrupt)

    def collate(self, rows: list[dict]) -> dict:
        batch = {"prompt": [row[self.columns["prompt"]] for row in rows], "index": [row["index"] for row in rows]}
        for key in self.images:
            batch[key] = torch.stack([self._image(row, self.columns[key]) for row in rows])
        return batch

    def _image(self, row: dict, column: str) -> torch.Tensor:
        return decode(row[column], self.resolution, f"row {row['index']}, column {column} of {row['file']}")
