"""Prompts to train on with rewards."""

from lit_align.data.datamodule import AlignData
from lit_align.data.tables import read_prompts


class Prompts(AlignData):
    """Training prompts for methods that sample their own images: batches {"prompt", "index", "skill"?}.

    Args:
        path: a .txt, .jsonl, .csv or .parquet file, or a folder or hub id of a dataset.
        column: the prompts' column.
        split: of a folder or hub dataset.
    """

    example = "configs/shapes/prompts/val.jsonl"

    def __init__(self, path: str, column: str = "prompt", split: str = "train", **kwargs):
        super().__init__(**kwargs)
        self.path, self.column, self.split = self.source(path), column, split

    def load(self, split: str):
        """The rows; where they are fewer than a batch on each device needs, as often as fills one."""
        if split != "train":
            return None
        rows = read_prompts(self.path, self.column, self.split)
        copies = -(-self.batch_size * self.trainer.world_size // max(len(rows), 1))
        return rows.select([*range(len(rows))] * copies) if copies > 1 else rows
