"""A user's own preference pairs."""

import os
from typing import Literal

import torch

from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.pairs import usable
from lit_align.data.tables import read_table
from lit_align.paths import find


class PreferencePairs(AlignData):
    """Pairs from a .parquet, .csv or .jsonl file: batches {"prompt", "win", "lose", "index"}.

    An image cell is a path (relative to the file), encoded bytes, or a datasets Image.

    Args:
        path: the file of training pairs.
        val_path: a file of held-out pairs, for implicit accuracy.
        prompt_column, win_column, lose_column: where the caption, the preferred and the other image are.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    images = ("win", "lose")

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
        self.paths = {"train": path, "val": val_path}
        self.columns = {"prompt": prompt_column, "win": win_column, "lose": lose_column}
        self.on_corrupt = on_corrupt

    def load(self, split: str):
        path = self.paths[split]
        if path is None:
            return None
        rows = read_table(path)
        for key, column in self.columns.items():
            if column not in rows.column_names:
                raise ValueError(
                    f"column `{column}` not found in {path}; columns are {', '.join(rows.column_names)}; set --data.{key}_column."
                )
        rows = rows.select_columns(list(self.columns.values()))
        return usable(rows, (self.columns["win"], self.columns["lose"]), self.on_corrupt, self.folder(split))

    def folder(self, split: str = "train") -> str:
        return os.path.dirname(find(self.paths[split]))

    def collate(self, rows: list[dict]) -> dict:
        batch = {"prompt": [row[self.columns["prompt"]] for row in rows], "index": [row["index"] for row in rows]}
        for key in self.images:
            column = self.columns[key]
            where = lambda row: f"row {row['index']}, column {column} of {self.paths['train']}"  # noqa: E731
            batch[key] = torch.stack([decode(row[column], self.resolution, where(row), self.folder()) for row in rows])
        return batch
