"""Prompts to train on with rewards."""

from lit_align.data.datamodule import AlignData
from lit_align.data.tables import read_prompts


class Prompts(AlignData):
    """Training prompts for methods that sample their own images: batches {"prompt", "index", "columns"}.

    Args:
        path: a .txt, .jsonl, .csv or .parquet file, or a folder or hub id of a dataset.
        column: the prompts' column.
        split: of a folder or hub dataset.
    """

    smoke_file = "configs/shapes/prompts/val.jsonl"

    def __init__(self, path: str, column: str = "prompt", split: str = "train", **kwargs):
        super().__init__(**kwargs)
        if self.smoke and self.prompt_files["val"]:
            self.smoke_file = self.prompt_files["val"]  # it has the columns that the recipe's rewards ask for
        self.path, self.column, self.split = self.training_path(path), column, split

    def load(self, split: str):
        """The rows, repeated if they are fewer than one batch on every device needs."""
        if split != "train":
            return None
        rows = read_prompts(self.path, "prompt" if self.smoke else self.column, self.split)
        due = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        copies = -(-due // len(rows))
        return rows.select([*range(len(rows))] * copies) if copies > 1 else rows
