"""Prompts to train on with rewards."""

from lit_align.data.datamodule import AlignData
from lit_align.data.tables import read_prompts


class Prompts(AlignData):
    """Training prompts for methods that sample their own images: batches {"prompt", "index", "columns"}.

    Args:
        path: a .txt, .json, .jsonl, .csv, .tsv or .parquet file, or a folder or hub id of a dataset (docs/hub.md lists
            published sets of prompts); only `fit` needs it.
        column: the prompts' column (default: prompt, or else caption, text, Prompt or Prompts).
        split: of a folder or hub dataset.
        revision: of the hub repository.
        rows: the first row and the one after the last (DDPO's animals are the rows 0 to 398 of imagenet_classes.txt).
        unique: take each prompt once.
        min_words: leave out shorter prompts (Flow-GRPO's captions of Pick-a-Pic: unique, 6 words).
    """

    smoke_file = "configs/shapes/prompts/val.jsonl"

    def __init__(
        self,
        path: str | None = None,
        column: str = "prompt",
        split: str = "train",
        revision: str | None = None,
        rows: tuple[int, int] | None = None,
        unique: bool = False,
        min_words: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.smoke and self.prompt_files["val"]:
            self.smoke_file = self.prompt_files["val"]  # it has the columns that the recipe's rewards ask for
        self.path, self.column, self.split = self.training_path(path), column, split
        self.revision, self.rows, self.unique, self.min_words = revision, rows, unique, min_words

    def load(self, split: str):
        """The rows, repeated if they are fewer than one batch on every device needs."""
        if split != "train":
            return None
        if not self.path:
            raise ValueError("nothing to train on: set --data.path to a file of prompts.")
        rows = read_prompts(self.path, "prompt" if self.smoke else self.column, self.split, self.revision)
        rows = rows if self.smoke else self.chosen(rows)
        due = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        copies = -(-due // len(rows))
        return rows.select([*range(len(rows))] * copies) if copies > 1 else rows

    def chosen(self, rows):
        """The prompts that are asked for, counted."""
        self.counts["train"], first, kept = {}, set(), []
        start, stop = self.rows or (0, float("inf"))
        kinds = {"outside of `rows`": 0, f"of fewer than {self.min_words} words": 0, "repeated": 0}
        for i, (index, text) in enumerate(zip(rows["index"][:], rows["prompt"][:])):
            wrong = not start <= index < stop, len(text.split()) < self.min_words, self.unique and text in first
            if any(wrong):
                kinds[list(kinds)[wrong.index(True)]] += 1
            else:
                kept.append(i)
                first.add(text)
        if not kept:
            raise ValueError(f"no prompt of {self.path} is left: look at data.rows and data.min_words.")
        for what, n in {"rows": len(rows), **kinds, "kept": len(kept)}.items():
            self.count("train", what, n)
        return rows.select(kept) if len(kept) < len(rows) else rows
