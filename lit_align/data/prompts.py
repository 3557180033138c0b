"""Prompts to train on with rewards."""

from lit_align.data.datamodule import AlignData
from lit_align.data.tables import read_prompts


class Prompts(AlignData):
    """Training prompts for methods that sample their own images: batches {"prompt", "index", "columns"}.

    Args:
        path: a .txt, .jsonl, .csv or .parquet file, or a folder or hub id of a dataset; only `fit` needs it.
        column: the prompts' column.
        split: of a folder or hub dataset.
    """

    smoke_file = "configs/shapes/prompts/val.jsonl"

    def __init__(self, path: str | None = None, column: str = "prompt", split: str = "train", **kwargs):
        super().__init__(**kwargs)
        self.path, self.column, self.split = self.training_path(path), column, split

    def load(self, split: str):
        """The rows, repeated if they are fewer than one batch on every device needs."""
        if split != "train":
            return None
        if not self.path:
            raise ValueError("nothing to train on: set --data.path to a file of prompts.")
        rows = read_prompts(self.path, "prompt" if self.smoke else self.column, self.split)
        due = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        copies = -(-due // len(rows))
        return rows.select([*range(len(rows))] * copies) if copies > 1 else rows
