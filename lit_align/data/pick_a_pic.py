"""Pick-a-Pic (arXiv 2305.01569), v1 and v2."""

from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.pairs import usable
from lit_align.paths import find

COLUMNS = ["caption", "jpg_0", "jpg_1", "label_0", "has_label", "are_different"]


class PickAPic(AlignData):
    """Pairs in Pick-a-Pic's published schema: batches {"prompt", "win", "lose", "index"} and `label` with ties kept.

    The winner is image 0 where label_0 is 1 and image 1 where it is 0. Rows without a label are left out; so are ties
    (label_0 = 0.5), about 12 % of v2, as in Diffusion-DPO. What is left out is counted in the log.

    Args:
        path: a hub id, a folder of parquet files named after their split, or one parquet file.
        split: the training split.
        val_split: a split of held-out pairs, for implicit accuracy (for a single file: another file's path).
        ties: drop them, or keep them with `label` 0.5 and image 0 as `win`, for methods that model ties.
        streaming: read as a stream, shuffled within a buffer, in place of a local copy.
        buffer_size: rows of that buffer.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    images = ("win", "lose")

    def __init__(
        self,
        path: str = "yuvalkirstain/pickapic_v2",
        split: str = "train",
        val_split: str | None = None,
        ties: Literal["drop", "keep"] = "drop",
        streaming: bool = False,
        buffer_size: int = 1000,
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.path, self.splits, self.ties = path, {"train": split, "val": val_split}, ties
        self.streaming, self.buffer_size, self.on_corrupt = streaming, buffer_size, on_corrupt

    def read(self, split: str):
        """The split as a datasets.Dataset, or an IterableDataset when streaming."""
        from datasets import load_dataset

        path = Path(find(self.path))
        if not path.exists():
            return load_dataset(self.path, split=split, streaming=self.streaming)
        if path.is_dir():
            files = sorted(map(str, path.rglob(f"{split}*.parquet")))
            if not files:
                raise FileNotFoundError(f"{self.path} has no parquet file whose name starts with {split}; set --data.split.")
        else:
            files = [str(path) if split == self.splits["train"] else find(split)]
        return load_dataset("parquet", data_files=files, split="train", streaming=self.streaming)

    def load(self, split: str):
        if self.splits[split] is None:
            return None
        rows = self.read(self.splits[split])
        missing = {"caption", "jpg_0", "jpg_1", "label_0"} - set(rows.column_names)
        if missing:
            raise ValueError(f"column `{sorted(missing)[0]}` not found in {self.path}; columns are {', '.join(rows.column_names)}.")
        rows = rows.select_columns([c for c in COLUMNS if c in rows.column_names])
        kept = (0.0, 1.0) if self.ties == "drop" else (0.0, 0.5, 1.0)
        if self.streaming and split == "train":
            rows = rows.filter(lambda row: has_label(row.get("has_label", True)) and float(row["label_0"]) in kept)
            return rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        label = np.array([float("nan") if v in (None, "") else float(v) for v in rows["label_0"]])
        labelled = np.array([has_label(v) for v in rows["has_label"]]) if "has_label" in rows.column_names else ~np.isnan(label)
        keep = labelled & np.isin(label, kept)
        same = sum(v is False for v in rows["are_different"]) if "are_different" in rows.column_names else 0
        rank_zero_info(
            f"{self.path} {self.splits[split]}: {len(rows)} rows, {int((labelled & (label == 0.5)).sum())} ties, "
            f"{int((~labelled).sum())} without label, {same} pairs of one image twice; {int(keep.sum())} kept"
        )
        return usable(rows.select(np.flatnonzero(keep)), ("jpg_0", "jpg_1"), self.on_corrupt)

    def collate(self, rows: list[dict]) -> dict:
        import torch

        first = [float(row["label_0"]) >= 0.5 for row in rows]
        image = lambda row, i: decode(row[f"jpg_{i}"], self.resolution, f"row {row['index']}, column jpg_{i} of {self.path}")  # noqa: E731
        batch = {"prompt": [row["caption"] for row in rows], "index": [row["index"] for row in rows]}
        batch["win"] = torch.stack([image(row, 0 if f else 1) for row, f in zip(rows, first)])
        batch["lose"] = torch.stack([image(row, 1 if f else 0) for row, f in zip(rows, first)])
        if self.ties == "keep":
            batch["label"] = torch.tensor([0.5 if float(row["label_0"]) == 0.5 else 1.0 for row in rows])
        return batch


def has_label(value) -> bool:
    """A has_label cell, which repackaged copies store as text."""
    return str(value) == "True"
