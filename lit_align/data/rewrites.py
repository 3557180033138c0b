"""Prompts with what a writer is to make of them."""

from lit_align.data.batch import COLUMN
from lit_align.data.prompts import Prompts


class Rewrites(Prompts):
    """Rows {"prompt", "target"} for PromptSFT: a file as `Prompts` takes it, with a column `target`, the text that is
    to follow the prompt and the separator."""

    smoke_file = "configs/shapes/prompts/rewrites.jsonl"

    def load(self, split: str):
        rows = super().load(split)
        if rows is not None and f"{COLUMN}target" not in rows.column_names:
            raise ValueError(f"{self.path} has no column target, which PromptSFT learns to write: add it.")
        return rows
