"""The base of the datasets with a pair of images in each row of parquet or WebDataset files."""

import os
from typing import Literal

from lit_align.data.image_files import in_folder, stamp_files
from lit_align.data.judged import Judged
from lit_align.data.tables import named_columns, read_rows
from lit_align.paths import find


class JudgedPairs(Judged):
    """Base of the datasets with a pair in each row. A subclass says what the columns are called and overrides `label`.

    Args:
        path: a hub id, a folder of parquet or .tar files named after their split (train-00000-of-00645.parquet), one
            such file, or a pattern of them.
        val_split: a split of held-out pairs, for implicit accuracy (beside a file or pattern: another one).
        streaming: read the training split as a stream, shuffled within a buffer, in place of a local copy (its length
            is unknown: set max_steps). Nothing is counted then.
        buffer_size: rows of that buffer.
    """

    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"
    unwanted = "left out"  # what the rows are that `is_wanted` leaves out
    read_by_label: tuple[str, ...] = ()  # columns that `label` and `is_wanted` read

    def __init__(self, path: str, streaming: bool = False, buffer_size: int = 1000, **kwargs):
        super().__init__(path=path, **kwargs)
        self.streaming, self.buffer_size = streaming, buffer_size
        if streaming and self.on_corrupt == "skip":
            raise ValueError("a stream cannot be searched for corrupt images before training: set on_corrupt: error.")
        if streaming and (self.binary or self.weight_by or self.curriculum or self.val_share):
            raise ValueError(
                "the rows of a stream cannot be counted before training: set streaming: false, or binary: false, "
                "weight_by: null, curriculum: null and val_share: 0."
            )

    def label(self, row: dict) -> float:
        """1 where the first image is better, 0 where the second is, 0.5 in a tie, nan without a judgement."""
        return 1.0

    def is_wanted(self, row: dict) -> bool:
        """Whether a row is used, apart from its label."""
        return True

    def read(self, split: Literal["train", "val"]):
        """The split with its published columns, a datasets.Dataset, or an IterableDataset when streaming."""
        from datasets import Dataset

        name, path = self.splits[split], self.path
        if split == "val" and self.is_file and not self.val_share:
            path = name
        if self.smoke:
            return self.shapes_pairs()
        try:
            rows = read_rows(path, name, self.revision, self.streaming)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} {self.home}") from error
        if self.streaming and split == "val":  # read whole, but no other split of the hub is downloaded
            return Dataset.from_generator(lambda: iter(rows), features=rows.features)
        return rows

    def shapes_pairs(self):
        """Pairs of Shapes images under this dataset's names, for `smoke`; without labels the better image is first."""
        rows = read_rows(self.smoke_file, "train")
        rows = rows if self.read_by_label else rows.filter(lambda label: label == 1, input_columns="label_0")
        own = {"caption": "prompt", "jpg_0": "image_0", "jpg_1": "image_1"}
        return rows.rename_columns({name: self.names[key] for name, key in own.items() if name != self.names[key]})

    @property
    def is_file(self) -> bool:
        return self.path.endswith((".parquet", ".tar"))

    def split_name(self, split: str) -> str:
        """What messages call the split."""
        if self.is_file:
            return self.path if split == "train" or self.val_share else self.splits[split]
        return f"{self.path} {self.splits[split]}"

    def named_rows(self, split: str):
        """The rows under the names that `Judged` asks for, without label; image paths are relative to the table."""
        rows = self.read(split)
        optional = [column for column in self.read_by_label if column in rows.column_names]
        rows = named_columns(rows, self.split_name(split), self.names, optional)
        place = find(self.path)
        return in_folder(rows, ("image_0", "image_1"), place if os.path.isdir(place) else os.path.dirname(place))

    def compared(self, split: str):
        rows = self.named_rows(split)
        read = [column for column in self.read_by_label if column in rows.column_names]
        cells = list(rows.select_columns(read)) if read else [{}] * len(rows)
        rows = rows.add_column("label", [self.label(row) for row in cells])
        wanted = [self.is_wanted(row) for row in cells]
        self.count(split, self.unwanted, wanted.count(False))
        rows = rows.add_column("keep", wanted)
        return stamp_files(rows, {key: self.names[key] for key in ("image_0", "image_1")}, self.on_corrupt)

    def load(self, split: str):
        from datasets import Features, Value

        if split == "val" or not self.streaming:
            return super().load(split)
        rows = self.named_rows(split)
        features = rows.features and Features({**rows.features, "label": Value("float64")})
        rows = rows.map(lambda row: {"label": self.label(row)}, features=features)
        rows = rows.filter(lambda row: row["label"] in self.kept and self.is_wanted(row))
        return rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)
