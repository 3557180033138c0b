"""Pick-a-Pic (arXiv 2305.01569), v1 and v2, and what is stored in its schema."""

import hashlib
from datetime import UTC, datetime
from typing import Literal

from lit_align.data.image_files import in_folder, stamp_files, stems
from lit_align.data.judged import Judged
from lit_align.data.tables import as_text, named_columns, read_rows

OPTIONAL = ("label_0", "has_label", "are_different", "image_0_uid", "image_1_uid")
WEBDATASET = {"original_prompt.txt": "caption", "jpg_0.jpg": "jpg_0", "jpg_1.jpg": "jpg_1", "label_0.txt": "label_0"}


class PickAPic(Judged):
    """Pick-a-Pic v1 and v2, and data in its published schema, such as `python -m lit_align label` writes.

    The first image is better where label_0 is 1, the second where it is 0. Rows without a label (has_label) are left
    out; so are ties (label_0 = 0.5), about 12 % of v2, as in Diffusion-DPO. A stream of the training split counts
    nothing. WebDataset copies (.tar) are read too, with the fields original_prompt.txt, jpg_0.jpg, label_0.txt, ... or
    with one field for each column.

    Args:
        path: a hub id, a folder of parquet or .tar files named after their split (train-00000-of-00645.parquet), one
            such file, or a pattern of them.
        val_split: a split of held-out pairs, for implicit accuracy (beside a file or pattern: another one).
        streaming: read the training split as a stream, shuffled within a buffer, in place of a local copy (its length
            is unknown: set max_steps).
        buffer_size: rows of that buffer.
        images: for copies without images (pickapic_v2_no_images): a folder of image files named by their uid.
        models: keep pairs whose two models have this text in their names (Diffusion-DPO's ablation on Dreamlike: dream).
    """

    home = (
        "Pick-a-Pic was removed from its owner's account in April 2025; copies are liuhuohuo2/pick-a-pic-v2, "
        "sayakpaul/pickapic_v2_webdataset and pickapic-anonymous/pickapic_v1: set --data.path to one of them, or to a "
        "folder with its parquet or .tar files."
    )
    names = {"prompt": "caption", "image_0": "jpg_0", "image_1": "jpg_1"}
    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"

    def __init__(
        self,
        path: str = "liuhuohuo2/pick-a-pic-v2",
        streaming: bool = False,
        buffer_size: int = 1000,
        images: str | None = None,
        models: str | None = None,
        **kwargs,
    ):
        super().__init__(path=path, **kwargs)
        self.streaming, self.buffer_size, self.images, self.models = streaming, buffer_size, images, models
        if streaming and self.on_corrupt == "skip":
            raise ValueError("a stream cannot be searched for corrupt images before training: set on_corrupt: error.")
        if streaming and (self.binary or self.weight_by or self.val_share or images):
            raise ValueError(
                "a stream cannot be counted before training, or joined with a folder: set streaming: false, or "
                "binary: false, weight_by: null, val_share: 0 and images: null."
            )

    def read(self, split: Literal["train", "val"]):
        """The split as a datasets.Dataset, or an IterableDataset when streaming."""
        from datasets import Dataset

        name, path = self.splits[split], self.path
        if split == "val" and path.endswith((".parquet", ".tar")) and not self.val_share:
            path = name
        streaming = self.streaming and split == "train"
        try:
            rows = read_rows(path, name, self.revision, self.streaming)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} {self.home}") from error
        if self.streaming and not streaming:  # held-out pairs are read whole, but no other split is downloaded
            rows = Dataset.from_generator(lambda: iter(rows), features=rows.features)
        return self.in_schema(rows)

    def in_schema(self, rows):
        """The rows with Pick-a-Pic's own columns."""
        rows = rows.rename_columns({old: new for old, new in WEBDATASET.items() if old in rows.column_names})
        rows = rows.remove_columns([c for c in ("__index_level_0__", "label_1.txt") if c in rows.column_names])
        return as_text(rows, [name for name in rows.column_names if name not in ("jpg_0", "jpg_1")])

    def split_name(self, split: str) -> str:
        """What messages call the split."""
        if self.path.endswith((".parquet", ".tar")):
            return self.path if split == "train" or self.val_share else self.splits[split]
        return f"{self.path} {self.splits[split]}"

    def load(self, split: str):
        if split == "val" or not self.streaming:
            return super().load(split)
        rows = self.pairs(split, self.read(split))
        label = lambda row: {"label": label_of(row)}
        rows = rows.map(label, features=rows.features and with_label(rows.features))
        rows = rows.filter(lambda row: row["label"] in self.kept and self.of_models(row))
        return rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)

    def pairs(self, split: str, rows):
        """The rows under the names that `Judged` asks for, without their labels."""
        name = self.split_name(split)
        columns = {"prompt": "caption", "image_0": "jpg_0", "image_1": "jpg_1"}
        if self.images:
            rows = self.with_images(rows, name)
        elif "jpg_0" not in rows.column_names and "image_0_uid" in rows.column_names:
            raise ValueError(
                f"column `jpg_0` not found in {name}, a copy without images: set --data.images to a folder of image "
                "files named by their uid, or read its captions by --data Prompts --data.column caption."
            )
        models = [column for column in ("model_0", "model_1") if self.models and column in rows.column_names]
        return in_folder(named_columns(rows, name, columns, (*OPTIONAL, *models)), ("image_0", "image_1"), "")

    def with_images(self, rows, name: str):
        """The rows with the paths of their images, found by uid."""
        files = stems(self.images)
        for k in (0, 1):
            paths = [files.get(uid, f"{self.images}/{uid}.png") for uid in rows[f"image_{k}_uid"]]
            rows = rows.remove_columns([c for c in (f"jpg_{k}",) if c in rows.column_names])
            rows = rows.add_column(f"jpg_{k}", paths)
        return rows

    def of_models(self, row: dict) -> bool:
        """Whether both models of a row have the wanted name."""
        return not self.models or all(self.models in (row[name] or "") for name in ("model_0", "model_1"))

    def compared(self, split: str):
        rows = self.pairs(split, self.read(split))
        if self.binary and "image_0_uid" not in rows.column_names:
            raise ValueError("binary labels need the columns image_0_uid and image_1_uid, by which images are told apart.")
        cells = [c for c in ("label_0", "has_label", "are_different") if c in rows.column_names]
        if "label_0" not in cells:
            found = ", ".join(rows.column_names)
            raise ValueError(f"column `label_0` not found in {self.split_name(split)}; columns are {found}.")
        rows = rows.add_column("label", [label_of(row) for row in rows.select_columns(cells)])
        same = sum(str(cell) == "False" for cell in rows["are_different"][:]) if "are_different" in cells else 0
        self.count(split, "pairs of one image twice", same)
        if self.models:
            of = [self.of_models(row) for row in rows.select_columns(["model_0", "model_1"])]
            self.count(split, "of other models", of.count(False))
            rows = rows.add_column("keep", of)
        if self.images:
            rows = stamp_files(rows, {"image_0": "image_0_uid", "image_1": "image_1_uid"}, self.on_corrupt)
        ids = {f"image_{k}_uid": f"id_{k}" for k in (0, 1) if f"image_{k}_uid" in rows.column_names}
        return rows.rename_columns(ids)


def with_label(features):
    from datasets import Features, Value

    return Features({**features, "label": Value("float64")})


def label_of(row: dict) -> float:
    """label_0 of a row, nan where there is none. Repackaged copies store labels and has_label as text."""
    if str(row.get("has_label", True)) != "True" or row["label_0"] in (None, ""):
        return float("nan")
    return float(row["label_0"])


def row(
    caption: str,
    image_0: bytes,
    image_1: bytes,
    label_0: float,
    model: str,
    number: int,
    user: int,
    model_1: str | None = None,
) -> dict:
    """One row of Pick-a-Pic v2 (fields and types of the published card) from two encoded images; `model_1` made the
    second, if another one did."""
    uid_0, uid_1 = (hashlib.sha256(image).hexdigest()[:32] for image in (image_0, image_1))
    best = {1.0: uid_0, 0.0: uid_1}.get(label_0, "tie")
    return {
        "are_different": image_0 != image_1,
        "best_image_uid": best,
        "caption": caption,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None),
        "has_label": True,
        "image_0_uid": uid_0,
        "image_0_url": "",
        "image_1_uid": uid_1,
        "image_1_url": "",
        "jpg_0": image_0,
        "jpg_1": image_1,
        "label_0": label_0,
        "label_1": 1 - label_0,
        "model_0": model,
        "model_1": model_1 or model,
        "ranking_id": number,
        "user_id": user,
        "num_example_per_prompt": 1,
    }
