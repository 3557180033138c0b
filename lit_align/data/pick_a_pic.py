"""Pick-a-Pic (arXiv 2305.01569), v1 and v2."""

from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.batch import text_batch
from lit_align.data.datamodule import AlignData
from lit_align.data.image_files import drop_unreadable
from lit_align.data.images import decode
from lit_align.data.tables import check_captions, load_dataset_of, named_columns
from lit_align.paths import find

SCHEMA = {"prompt": "caption", "jpg_0": "jpg_0", "jpg_1": "jpg_1", "label_0": "label_0"}
MIRRORS = (
    "Pick-a-Pic was removed from its owner's account in April 2025; copies are liuhuohuo2/pick-a-pic-v2 and "
    "pickapic-anonymous/pickapic_v1: set --data.path to one of them, or to a folder with its parquet files."
)
OPTIONAL = ("has_label", "are_different", "image_0_uid", "image_1_uid")


class PickAPic(AlignData):
    """Pairs in Pick-a-Pic's published schema: a PairBatch {"prompt", "win", "lose", ...}; `label` if ties are kept.

    The winner is image 0 where label_0 is 1 and image 1 where it is 0. Rows without a label are dropped; so are ties
    (label_0 = 0.5), about 12 % of v2, as in Diffusion-DPO. The log counts what is dropped. `index` is the row in the
    split.

    With `binary` the same rows give single images, each once: an ImageBatch {"prompt", "image", "label", ...}. The
    label is 1 for an image that was preferred in any row, 0 for one that only lost (Diffusion-KTO's rule, arXiv
    2404.04465); ties do not count.

    Args:
        path: a hub id, a folder of parquet files named after their split (train-00000-of-00645.parquet), one parquet
            file, or a pattern of them.
        split: the training split.
        val_split: a split of held-out pairs, for implicit accuracy (beside a file or pattern: another one).
        ties: drop them, or keep them with `label` 0.5 and image 0 as `win`, for methods that model ties.
        streaming: read the training split as a stream, shuffled within a buffer, in place of a local copy (its length
            is unknown: set max_steps).
        buffer_size: rows of that buffer.
        binary: single images with a label in place of pairs.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    image_columns = ("jpg_0", "jpg_1")
    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"

    def __init__(
        self,
        path: str = "liuhuohuo2/pick-a-pic-v2",
        split: str = "train",
        val_split: str | None = None,
        ties: Literal["drop", "keep"] = "drop",
        streaming: bool = False,
        buffer_size: int = 1000,
        binary: bool = False,
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if streaming and on_corrupt == "skip":
            raise ValueError("a stream cannot be searched for corrupt images before training: set on_corrupt: error.")
        if binary and (streaming or val_split or ties == "keep"):
            raise ValueError(
                "binary labels are counted over all training rows: set streaming: false, val_split: null, ties: drop."
            )
        self.path, self.splits = self.training_path(path), {"train": split, "val": None if self.smoke else val_split}
        self.binary, self.image_keys = binary, ("image",) if binary else ("win", "lose")
        self.ties, self.kept = ties, (0.0, 1.0) if ties == "drop" else (0.0, 0.5, 1.0)
        self.streaming, self.buffer_size, self.on_corrupt = streaming, buffer_size, on_corrupt

    def read(self, split: Literal["train", "val"]):
        """The split as a datasets.Dataset, or an IterableDataset when streaming."""
        from datasets import Dataset

        name, streaming = self.splits[split], self.streaming and split == "train"
        path = Path(find(self.path))
        if path.is_dir():
            files = sorted(str(f) for f in path.rglob("*.parquet") if f.stem == name or f.stem.startswith(f"{name}-"))
            if not files:
                raise FileNotFoundError(f"{self.path} has no {name}.parquet or {name}-*.parquet; set --data.split.")
        elif path.suffix == ".parquet":
            files = find(self.split_name(split))
        else:
            try:
                rows = load_dataset_of(self.path, self.path, split=name, streaming=self.streaming)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error} {MIRRORS}") from error
            if self.streaming and not streaming:  # held-out pairs are read whole, but no other split is downloaded
                return Dataset.from_generator(lambda: iter(rows), features=rows.features)
            return rows
        return load_dataset_of(self.path, "parquet", data_files=files, split="train", streaming=streaming)

    def split_name(self, split: str) -> str:
        """What messages call the split."""
        if self.path.endswith(".parquet"):
            return self.path if split == "train" else self.splits[split]
        return f"{self.path} {self.splits[split]}"

    def load(self, split: str):
        if self.splits[split] is None:
            return None
        name = self.split_name(split)
        rows = named_columns(self.read(split), name, SCHEMA, OPTIONAL)
        if self.streaming and split == "train":
            rows = rows.filter(lambda row: label(row) in self.kept)
            return rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        cells = rows.select_columns([c for c in ("label_0", "has_label", "are_different") if c in rows.column_names])
        labels = np.array([label(row) for row in cells])
        keep = np.isin(labels, self.kept)
        same = sum(row.get("are_different") is False for row in cells)
        rank_zero_info(
            f"{name}: {len(rows)} rows, {(labels == 0.5).sum()} ties, {np.isnan(labels).sum()} without label, "
            f"{same} pairs of one image twice; {keep.sum()} kept"
        )
        rows = rows.select(np.flatnonzero(keep))
        check_captions(rows, SCHEMA["prompt"])
        rows = drop_unreadable(rows, ("jpg_0", "jpg_1"), self.on_corrupt)
        return single_images(rows) if self.binary else rows

    def collate(self, rows: list[dict]) -> dict:
        batch = text_batch(rows)
        if self.binary:
            batch["image"] = torch.stack([self.image(row, row["column"]) for row in rows])
            return batch | {"label": torch.tensor([row["good"] for row in rows])}
        labels = [label(row) for row in rows]
        columns = [("jpg_0", "jpg_1") if y >= 0.5 else ("jpg_1", "jpg_0") for y in labels]
        batch["win"] = torch.stack([self.image(row, win) for row, (win, _) in zip(rows, columns)])
        batch["lose"] = torch.stack([self.image(row, lose) for row, (_, lose) in zip(rows, columns)])
        if self.ties == "keep":
            batch["label"] = torch.tensor([0.5 if y == 0.5 else 1.0 for y in labels])
        return batch

    def image(self, row: dict, column: str) -> torch.Tensor:
        return decode(row[column], self.image_size(row), f"row {row['index']}, column {column} of {row['file']}")


def label(row: dict) -> float:
    """label_0 of a row, nan where there is none. Repackaged copies store labels and has_label as text."""
    if str(row.get("has_label", True)) != "True" or row["label_0"] in (None, ""):
        return float("nan")
    return float(row["label_0"])


def single_images(rows):
    """Every image of the pairs once: the rows it is taken from, with `column` and `good`, 1.0 if it ever won."""
    if "image_0_uid" not in rows.column_names:
        raise ValueError("binary labels need the columns image_0_uid and image_1_uid, by which images are told apart.")
    first, good = {}, defaultdict(float)  # uid -> (row, column), label
    for i, row in enumerate(rows.select_columns(["image_0_uid", "image_1_uid", "label_0"])):
        for k, won in ((0, float(row["label_0"]) == 1), (1, float(row["label_0"]) == 0)):
            uid = row[f"image_{k}_uid"]
            first.setdefault(uid, (i, f"jpg_{k}"))
            good[uid] = max(good[uid], float(won))
    places, columns = zip(*first.values())
    labels = [good[uid] for uid in first]
    rank_zero_info(f"{len(first)} images, {sum(labels):.0f} of them preferred at least once")
    return rows.select(places).add_column("column", list(columns)).add_column("good", labels)
