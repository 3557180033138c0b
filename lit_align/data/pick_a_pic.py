"""Pick-a-Pic (arXiv 2305.01569), v1 and v2, and what is stored in its schema."""

import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from lit_align.data.image_files import stems
from lit_align.data.judged_pairs import JudgedPairs
from lit_align.data.tables import as_text, write_parquet
from lit_align.paths import find

WEBDATASET = {"original_prompt.txt": "caption", "jpg_0.jpg": "jpg_0", "jpg_1.jpg": "jpg_1", "label_0.txt": "label_0"}
UNUSED = ("__index_level_0__", "label_1.txt")


class PickAPic(JudgedPairs):
    """Pick-a-Pic v1 and v2, and data in its published schema, such as `python -m lit_align label` writes.

    The first image is better where label_0 is 1, the second where it is 0. Rows without a label (has_label) are left
    out; so are ties (label_0 = 0.5), about 12 % of v2, as in Diffusion-DPO. WebDataset copies (.tar) are read too, with
    the fields original_prompt.txt, jpg_0.jpg, label_0.txt, ... or with one field for each column.

    Args:
        images: for copies without images (pickapic_v2_no_images): a folder of image files named by their uid.
        models: leave out pairs unless both models have this text in their names (Diffusion-DPO's ablation on
            Dreamlike: dream).
    """

    home = (
        "Pick-a-Pic was removed from its owner's account in April 2025; copies are liuhuohuo2/pick-a-pic-v2, "
        "sayakpaul/pickapic_v2_webdataset and pickapic-anonymous/pickapic_v1: set --data.path to one of them, or to a "
        "folder with its parquet or .tar files."
    )
    names = {"prompt": "caption", "image_0": "jpg_0", "image_1": "jpg_1"}
    unwanted = "of other models"

    def __init__(
        self, path: str = "liuhuohuo2/pick-a-pic-v2", images: str | None = None, models: str | None = None, **kwargs
    ):
        super().__init__(path=path, **kwargs)
        self.images, self.models = images, models
        if images and self.streaming:
            raise ValueError("a stream cannot be joined with a folder: set streaming: false or images: null.")
        self.read_by_label = ("label_0", "has_label", "are_different", "image_0_uid", "image_1_uid")
        self.read_by_label += ("model_0", "model_1") if models else ()

    def read(self, split: str):
        rows = super().read(split)
        rows = rows.rename_columns({old: new for old, new in WEBDATASET.items() if old in rows.column_names})
        rows = rows.remove_columns([name for name in UNUSED if name in rows.column_names])
        rows = as_text(rows, [name for name in rows.column_names if name not in ("jpg_0", "jpg_1")])
        uids, name = {"image_0_uid", "image_1_uid"} <= set(rows.column_names), self.split_name(split)
        if "label_0" not in rows.column_names:
            raise ValueError(f"column `label_0` not found in {name}; columns are {', '.join(rows.column_names)}.")
        if self.binary and not uids:
            raise ValueError(
                "binary labels need the columns image_0_uid and image_1_uid, by which images are told apart."
            )
        if self.images:
            return self.with_images(rows)
        if uids and "jpg_0" not in rows.column_names:
            raise ValueError(
                f"{name} has no images: set --data.images to a folder of image files named by their uid, or read its "
                "captions by --data Prompts --data.column caption."
            )
        return rows

    def with_images(self, rows):
        """The rows with the paths of their images, found by uid."""
        folder = os.path.abspath(find(self.images))
        files = stems(folder)
        rows = rows.remove_columns([column for column in ("jpg_0", "jpg_1") if column in rows.column_names])
        for k in (0, 1):
            paths = [files.get(uid, os.path.join(folder, uid)) for uid in rows[f"image_{k}_uid"][:]]
            rows = rows.add_column(f"jpg_{k}", paths)
        return rows

    def label(self, row: dict) -> float:
        """label_0 of a row, nan where there is none. Repackaged copies store labels and has_label as text."""
        if str(row.get("has_label", True)) != "True" or row["label_0"] in (None, ""):
            return float("nan")
        return float(row["label_0"])

    def is_wanted(self, row: dict) -> bool:
        return not self.models or all(self.models in (row[model] or "") for model in ("model_0", "model_1"))

    def compared(self, split: str):
        rows = super().compared(split)
        if "are_different" in rows.column_names:
            same = [str(cell) for cell in rows["are_different"][:]].count("False")
            self.count(split, "pairs of one image twice", same)
        uids = {f"image_{k}_uid": f"id_{k}" for k in (0, 1)}
        return rows.rename_columns({uid: key for uid, key in uids.items() if uid in rows.column_names})


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


TYPES = {  # of the published card
    "bool": ("are_different", "has_label"),
    "string": ("best_image_uid", "caption", "image_0_uid", "image_0_url", "image_1_uid", "image_1_url")
    + ("model_0", "model_1"),
    "binary": ("jpg_0", "jpg_1"),
    "float64": ("label_0", "label_1"),
    "int64": ("ranking_id", "user_id", "num_example_per_prompt"),
    "timestamp[ns]": ("created_at",),
}


def write_rows(rows: Iterable[dict], scores: list[str], file: Path) -> int:
    """Writes rows of `row` as a parquet file, whole or not at all, and returns how many they are. `scores` names
    further pairs of numbers, `<name>_0` and `<name>_1`."""
    kinds = {name: kind for kind, names in TYPES.items() for name in names}
    kinds |= {f"{name}_{k}": "float64" for name in scores for k in (0, 1)}
    return write_parquet(rows, kinds, file)
