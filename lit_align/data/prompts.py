"""Prompts to train on with rewards."""

from lit_align.data.datamodule import AlignData
from lit_align.data.tables import read_prompts


class Prompts(AlignData):
    """Training prompts for methods that sample their own images: batches {"prompt", "index", "skill"?}.

    Args:
        path: a .txt, .jsonl, .csv or .parquet file.
        column: the prompts' column.
    """

    def __init__(self, path: str, column: str = "prompt", **kwargs):
        super().__init__(**kwargs)
        self.path, self.column = path, column

    def load(self, split: str):
        return read_prompts(self.path, self.column) if split == "train" else None
