"""The base of the published datasets of judged images: as pairs, or as good and bad images."""

import hashlib
from abc import abstractmethod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_align.data.batch import text_batch
from lit_align.data.datamodule import AlignData
from lit_align.data.feedback import even_weights, good_images, scaled
from lit_align.data.image_files import drop_unreadable
from lit_align.data.images import decode
from lit_align.data.order import Curriculum
from lit_align.data.tables import check_captions


class Judged(AlignData):
    """Base of the datasets of judged images. A subclass gives `compared`: a table of pairs of images.

    Gives a PairBatch {"prompt", "win", "lose", ...}, with `label` if ties are kept and `weight` if pairs are weighted.
    With `binary` the same pairs give single images, each once: an ImageBatch {"prompt", "image", "label", ...}, label 1
    for an image that was preferred and 0 for one that only lost (Diffusion-KTO's rule, arXiv 2404.04465); ties do not
    count. `summary` counts what is kept and what is left out. `index` is the row, or record, in the published file.

    Args:
        path: a hub id, a folder of the published files, or one file of them.
        revision: of the hub repository.
        split: the training split.
        val_split: a split of held-out pairs, for implicit accuracy.
        val_share: in place of val_split, the share of the prompts whose pairs are held out from training.
        ties: drop them, or keep them with `label` 0.5 and the first image as `win`, for methods that model ties.
        weight_by: `prompt` gives every prompt the same weight, however many pairs it has; `gap` weights a pair by the
            difference of its scores. Weights have mean 1.
        curriculum: (K, n): pairs from easy to hard (Curriculum-DPO, arXiv 2405.13637): a pair is the easier the larger
            the difference of its scores; of K stages of n batches, the k-th takes the easiest k / K of the pairs.
        binary: single images with a label in place of pairs.
        mixed: with `binary`, what an image is that won in one pair and lost in another.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    home = ""  # where the data can be had, a sentence for error messages
    image_columns = ("image_0", "image_1")
    names: dict[str, str] = {}  # what messages call these columns and `prompt`: their names in the published file
    has_ties = True
    counted = ("pairs",)  # what `summary` begins with

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        val_share: float = 0.0,
        ties: Literal["drop", "keep"] = "drop",
        weight_by: Literal["prompt", "gap"] | None = None,
        curriculum: tuple[int, int] | None = None,
        binary: bool = False,
        mixed: Literal["good", "bad", "drop"] = "good",
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= val_share < 1 or (val_share and val_split):
            raise ValueError(f"data.val_share is {val_share}: give a share below 1, and no data.val_split with it.")
        if binary and (val_split or val_share or ties == "keep" or weight_by):
            raise ValueError(
                "binary labels are counted over all training rows: set val_split: null, val_share: 0, ties: drop and "
                "weight_by: null."
            )
        if curriculum and (binary or self.buckets or min(curriculum) < 1):
            raise ValueError(
                f"data.curriculum is {[*curriculum]}: give the number of stages and the batches of each, with binary: "
                "false and buckets: false."
            )
        if ties == "keep" and not self.has_ties:
            raise ValueError(f"{type(self).__name__} has no ties: set --data.ties drop.")
        self.path, self.revision = self.training_path(path), revision
        self.splits = {"train": split, "val": None if self.smoke else val_split or (split if val_share else None)}
        self.val_share = val_share
        self.ties, self.weight_by, self.binary, self.mixed = ties, weight_by, binary, mixed
        self.curriculum, self.gaps = curriculum, []
        self.kept = (0.0, 1.0) if ties == "drop" else (0.0, 0.5, 1.0)
        self.image_keys, self.on_corrupt = ("image",) if binary else ("win", "lose"), on_corrupt
        if binary:
            self.image_columns = ("image",)

    @abstractmethod
    def compared(self, split: Literal["train", "val"]):
        """The split's pairs, a datasets.Dataset with the columns prompt, image_0 and image_1 (an image cell each),
        label (1 where image_0 is better, 0 where image_1 is, 0.5 in a tie, nan without a judgement), index, file,
        `columns.<name>`, and perhaps gap, keep (False: leave the row out), and id_0 and id_1, which tell images apart
        (without them paths do, and encoded images are all different)."""

    def load(self, split: str):
        if self.splits[split] is None:
            return None
        self.counts[split] = dict.fromkeys(self.counted, 0)
        rows = self.checked(split, self.chosen(split, self.compared(split)))
        if self.curriculum and split == "train":
            if "gap" not in rows.column_names:
                raise ValueError(f"{type(self).__name__} has no scores to order pairs by: set --data.curriculum null.")
            self.gaps = rows["gap"][:]
        return rows

    def training_order(self, seen, num_replicas, rank):
        dataset, order = super().training_order(seen, num_replicas, rank)
        if not self.curriculum:
            return dataset, order
        ranks = {"num_replicas": num_replicas, "rank": rank, "seed": self.seed}
        gaps = self.gaps[: len(self.train)]  # `smoke` takes the first rows
        return dataset, Curriculum(gaps, *self.curriculum, self.batch_size, order.per_pass, seen, **ranks)

    def chosen(self, split: str, rows):
        """The rows that are used. Columns are added before rows are selected: `datasets` then copies no image."""
        label = np.array(rows["label"][:], float)
        self.count(split, "pairs", len(rows))
        self.count(split, "ties" if self.ties == "drop" else "of them ties", int((label == 0.5).sum()))
        self.count(split, "without label", int(np.isnan(label).sum()))
        keep = np.isin(label, self.kept) & self.of_split(split, rows["prompt"][:])
        if "keep" in rows.column_names:
            keep &= np.array(rows["keep"][:])
        if self.weight_by:
            rows = rows.add_column("weight", self.weights(rows, keep))
        if self.binary:
            return self.single_images(split, rows, label, keep)
        return rows.select(np.flatnonzero(keep))

    def of_split(self, split: str, prompts: list[str]) -> np.ndarray:
        """(N,) bool: whether each prompt belongs to the split, by a hash of its text without case and spacing: the
        pairs of a prompt stay together."""
        if not self.val_share:
            return np.ones(len(prompts), bool)
        text = lambda prompt: " ".join(str(prompt).lower().split()).encode()
        held_out = {
            p: int(hashlib.sha256(text(p)).hexdigest()[:12], 16) < self.val_share * 16**12 for p in set(prompts)
        }
        mine = np.array([held_out[prompt] == (split == "val") for prompt in prompts])
        self.count(split, "of prompts of the other split", int((~mine).sum()))
        return mine

    def weights(self, rows, keep: np.ndarray) -> np.ndarray:
        """(N,) the rows' weights; 0 for rows that are not kept."""
        if self.weight_by == "gap" and "gap" not in rows.column_names:
            raise ValueError(f"{type(self).__name__} has no scores: set --data.weight_by prompt.")
        values = np.array(rows[self.weight_by][:], dtype=object)[keep]
        weight = np.zeros(len(rows))
        if keep.any():
            weight[keep] = even_weights(values) if self.weight_by == "prompt" else scaled(values)
        return weight

    def single_images(self, split: str, rows, label: np.ndarray, keep: np.ndarray):
        """Every image of the pairs once, from the row where it stands first: `image`, `column` and `good`."""
        from datasets import concatenate_datasets

        ids = [image_ids(rows, k) for k in (0, 1)]
        places = np.flatnonzero(keep).tolist()
        sides = [(int(label[i] == 0), int(label[i] == 1)) for i in places]  # the better and the worse
        good = good_images(((ids[win][i], ids[lose][i]) for i, (win, lose) in zip(places, sides)), self.mixed)
        first: dict = {}  # id -> (row, side)
        for i in places:
            for k in (0, 1):
                if ids[k][i] in good:
                    first.setdefault(ids[k][i], (i, k))
        parts, order = [], []
        for k in (0, 1):
            side = rows.add_column("good", [good.get(image, 0.0) for image in ids[k]])
            side = side.add_column("column", [f"image_{k}"] * len(rows))
            side = side.remove_columns(f"image_{1 - k}").rename_column(f"image_{k}", "image")
            chosen = [i for i, of in first.values() if of == k]
            parts.append(side.select_columns(sorted(side.column_names)).select(chosen))
            order += [2 * i + k for i in chosen]
        self.count(split, "preferred at least once", sum(map(bool, good.values())))
        return concatenate_datasets(parts).select(np.argsort(order))

    def checked(self, split: str, rows):
        """The rows after a look at every caption, and with `on_corrupt: skip` at every image."""
        if not len(rows):
            raise ValueError(f"no row is left of {self.describe(split)}.")
        check_captions(rows, self.names.get("prompt", "prompt"))
        readable = drop_unreadable(rows, self.image_columns, self.on_corrupt)
        self.count(split, "with an unreadable image", len(rows) - len(readable))
        self.count(split, "images kept" if self.binary else "kept", len(readable))
        return readable

    def collate(self, rows: list[dict]) -> dict:
        batch = text_batch(rows)
        if self.binary:
            batch["image"] = torch.stack([self.image(row, "image") for row in rows])
            return batch | {"label": torch.tensor([row["good"] for row in rows])}
        better = [0 if row["label"] >= 0.5 else 1 for row in rows]
        batch["win"] = torch.stack([self.image(row, f"image_{k}") for row, k in zip(rows, better)])
        batch["lose"] = torch.stack([self.image(row, f"image_{1 - k}") for row, k in zip(rows, better)])
        if self.ties == "keep":
            batch["label"] = torch.tensor([0.5 if row["label"] == 0.5 else 1.0 for row in rows])
        if self.weight_by:
            batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return batch

    def image(self, row: dict, key: str) -> Tensor:
        column = row.get("column", key)
        where = f"row {row['index']}, column {self.names.get(column, column)} of {row['file']}"
        return decode(row[key], self.image_size(row), where)


def image_ids(rows, k: int) -> list:
    """What tells the images of column `image_<k>` apart."""
    for name in (f"id_{k}", f"image_{k}"):
        if name in rows.column_names and "string" in str(rows.features[name].dtype):
            return rows[name][:]
    return [(i, k) for i in range(len(rows))]
