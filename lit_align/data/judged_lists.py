"""The base of the datasets whose images are ranked or scored, perhaps in several dimensions."""

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch

from lit_align.data.batch import COLUMN, text_batch
from lit_align.data.feedback import pairs, total
from lit_align.data.image_files import in_folder, stamp_files
from lit_align.data.images import decode
from lit_align.data.judged import Judged
from lit_align.data.tables import columns_of, read_table
from lit_align.paths import find


class JudgedLists(Judged):
    """Base of the datasets in which the images of a prompt are ranked or scored. A subclass gives `lists`.

    All pairs of a list whose scores differ are pairs. With `list_size` the lists stay whole: a RankingBatch {"prompt",
    "images", "scores", ...} with one score for each dimension.

    Args:
        dimensions: what is judged -> its weight. Pairs are ordered by the weighted sum. In lists each dimension stays a
            number of its own, times its weight; methods that take one number use the mean.
        margin: images are tied if their weighted sums differ by this or less.
        list_size: K: lists of the first K images of a prompt; prompts with fewer are left out.
    """

    counted = ("records", "pairs")
    smoke_file = "checkpoints/shapes-sd/lists/train.parquet"
    dimensions: dict[str, float] = {}  # the default
    known: tuple[str, ...] = ()  # all dimensions that the dataset has; default: those above

    def __init__(
        self,
        path: str,
        dimensions: dict[str, float] | None = None,
        margin: float = 0.0,
        list_size: int | None = None,
        **kwargs,
    ):
        super().__init__(path=path, **kwargs)
        known = self.known or tuple(self.dimensions)
        self.dimensions, self.margin, self.list_size = dimensions or self.dimensions, margin, list_size
        if wrong := [name for name in self.dimensions if name not in known]:
            raise ValueError(
                f"{type(self).__name__} has no dimension {wrong[0]}; it has {', '.join(known)}: set --data.dimensions."
            )
        if list_size:
            self.image_keys, self.image_columns = ("images",), ("images",)
            if self.binary or self.weight_by or self.curriculum or self.ties == "keep" or self.splits["val"]:
                raise ValueError(
                    "lists have no pairs: set binary: false, ties: drop, weight_by: null, curriculum: null, val_split: "
                    "null and val_share: 0."
                )

    @abstractmethod
    def lists(self, split: str) -> Iterator[dict]:
        """The split's records: {"prompt", "images": K image cells, "scores": {dimension: K numbers, higher is better;
        None without a judgement}, "index", "file", "columns": {name: further field}}."""

    def records(self, split: str) -> Iterator[dict]:
        for one in self.shapes_lists() if self.smoke else self.lists(split):
            found = {name: len(one["scores"][name] or ()) for name in self.dimensions}
            k = len(one["images"] or ())
            if wrong := [name for name, n in found.items() if n != k]:
                raise ValueError(
                    f"record {one['index']} of {one['file']} has {k} images and {found[wrong[0]]} judgements of "
                    f"{wrong[0]}: mend it or leave it out."
                )
            base = {"prompt": one["prompt"], "index": one["index"], "file": one["file"]}
            yield one | {"base": base | {COLUMN + name: cell for name, cell in one["columns"].items()}}

    def table_rows(self, split: str, images: tuple[str, ...]) -> Iterator[dict]:
        """The rows of a table with a prompt, columns of `images` and one column for each dimension. Images stay as they
        are stored, paths are relative to the table."""
        try:
            table = read_table(self.path, self.splits[split], self.revision)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} {self.home}") from error
        if missing := [name for name in ("prompt", *images, *self.dimensions) if name not in table.column_names]:
            found = ", ".join(table.column_names)
            raise ValueError(f"column `{missing[0]}` not found in {self.path}; columns are {found}. {self.home}")
        yield from in_folder(table, images, os.path.dirname(find(self.path)))

    def shapes_lists(self) -> Iterator[dict]:
        """Lists of Shapes images, for `smoke`."""
        for i, row in enumerate(read_table(self.smoke_file).select(range(8))):
            scores = dict.fromkeys(self.dimensions, row["partial"])
            one = {"prompt": row["prompt"], "images": row["images"], "scores": scores}
            yield one | {"index": i, "file": self.smoke_file, "columns": {}}

    def table(self, rows: Iterable[dict]):
        """The rows as a datasets.Dataset; FileNotFoundError where an image file is missing, unless `on_corrupt` is
        skip."""
        from datasets import Dataset

        columns = columns_of(rows)
        if not columns:
            raise ValueError(f"{self.path}: the split {self.splits['train']} compares no images.")
        rows = Dataset.from_dict(columns, on_mixed_types="use_json")
        keys = ("images",) if self.list_size else ("image_0", "image_1")
        return stamp_files(rows, {key: self.names.get(key, key) for key in keys}, self.on_corrupt)

    def compared(self, split: str):
        return self.table(self.pair_rows(split))

    def pair_rows(self, split: str) -> Iterator[dict]:
        """The rows of pairs. Where the data has no ties, images of one score are not compared."""
        for one in self.records(split):
            found = pairs(total(one["scores"], self.dimensions), self.margin)
            self.count(split, "records", 1)
            self.count(split, "records without a pair", int(not found))
            for win, lose, gap in found:
                if gap or self.has_ties:
                    images = {"image_0": one["images"][win], "image_1": one["images"][lose]}
                    if self.binary and not isinstance(one["images"][win], str):
                        images |= {"id_0": f"{one['index']} {win}", "id_1": f"{one['index']} {lose}"}
                    yield one["base"] | images | {"label": 1.0 if gap else 0.5, "gap": gap}

    def load(self, split: str):
        if not self.list_size or split == "val":
            return super().load(split)
        self.counts[split] = {"records": 0}
        return self.checked(split, self.table(self.whole_lists(split)))

    def whole_lists(self, split: str) -> Iterator[dict]:
        """The rows of lists of `list_size` images."""
        for one in self.records(split):
            self.count(split, "records", 1)
            scores = [[cell for cell in one["scores"][name][: self.list_size]] for name in self.dimensions]
            if len(one["images"]) < self.list_size:
                self.count(split, f"of fewer than {self.list_size} images", 1)
            elif any(cell is None for column in scores for cell in column):
                self.count(split, "without label", 1)
            else:
                scores = [[w * cell for w, cell in zip(self.dimensions.values(), row)] for row in zip(*scores)]
                yield one["base"] | {"images": one["images"][: self.list_size], "scores": scores}

    def collate(self, rows: list[dict]) -> dict:
        if not self.list_size:
            return super().collate(rows)
        column, images = self.names.get("images", "images"), []
        for row in rows:
            where = f"row {row['index']}, column {column} of {row['file']}"
            images.append(torch.stack([decode(cell, self.resolution, where) for cell in row["images"]]))
        scores = torch.tensor([row["scores"] for row in rows], dtype=torch.float32)  # (B, K, R)
        return text_batch(rows) | {"images": torch.stack(images), "scores": scores}
