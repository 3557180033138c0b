"""A user's own preference pairs."""

import os
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.batch import text_batch
from lit_align.data.datamodule import SMOKE_EDITS, SMOKE_VIDEOS, AlignData
from lit_align.data.image_files import drop_unreadable, in_folder, stamp_files
from lit_align.data.label_studio import is_export, read_export
from lit_align.data.tables import check_captions, named_columns, read_table
from lit_align.paths import find

NAMES = {  # what the columns are called where the user does not say
    "prompt": ("prompt", "caption", "text"),
    "win": ("win", "chosen", "preferred", "winner"),
    "lose": ("lose", "rejected", "dispreferred", "loser"),
}


class PreferencePairs(AlignData):
    """Pairs from a .parquet, .csv or .jsonl file or a datasets folder: a PairBatch {"prompt", "win", "lose", ...}.

    An image cell is a path (relative to the file), encoded bytes, or a datasets Image. `index` is the row in the file.
    With a policy that makes videos, a cell is a video (see data/videos.py), of which the policy's frames are read.
    A .json export of Label Studio's Pairwise tag is read, too (see data/label_studio.py).

    Args:
        path: the file of training pairs, or a folder that `datasets` reads (an imagefolder, say).
        val_path: the same of held-out pairs, for implicit accuracy.
        prompt_column, win_column, lose_column: where the caption, the preferred and the other image are (default: the
            first that the file has of prompt, caption, text; win, chosen, preferred, winner; lose, rejected,
            dispreferred, loser; the log says which).
        left_column, right_column: of a Label Studio export, the fields with the two images, in the order of `toName`
            (default: two whose names differ in 1 and 2, a and b, or left and right; the log says which).
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    image_keys = image_columns = ("win", "lose")
    takes_videos = True
    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        prompt_column: str | None = None,
        win_column: str | None = None,
        lose_column: str | None = None,
        left_column: str | None = None,
        right_column: str | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        columns = ("caption", "jpg_0", "jpg_1") if self.smoke else (prompt_column, win_column, lose_column)
        self.paths = {"train": self.training_path(path), "val": None if self.smoke else val_path}
        self.columns, self.sides = dict(zip(NAMES, columns)), (left_column, right_column)
        if (left_column is None) != (right_column is None):
            raise ValueError("left_column and right_column name the two images of a Label Studio task: give both.")
        self.on_corrupt = on_corrupt

    def load(self, split: str):
        path = self.paths[split]
        if path is None:
            return None
        if self.smoke and (self.num_frames or self.sources):
            path = SMOKE_VIDEOS if self.num_frames else SMOKE_EDITS
        exported = is_export(path)
        if any(self.sides) and not exported:
            raise ValueError(f"{path} is no Label Studio export: leave left_column and right_column out.")
        table = read_export(path, *self.sides) if exported else read_table(path)
        columns = {key: column or find_column(key, table, path) for key, column in self.columns.items()}
        for key, column in columns.items():
            if column not in table.column_names:
                found = f"columns are {', '.join(table.column_names)}"
                raise ValueError(f"column `{column}` not found in {path}; {found}; set --data.{key}_column.")
        rank_zero_info(f"{path}: " + ", ".join(f"{key} is column `{column}`" for key, column in columns.items()))
        rows = named_columns(table, path, columns)
        check_captions(rows, columns["prompt"])
        rows = in_folder(rows, self.image_keys, os.path.dirname(find(path)))
        images = {key: columns[key] for key in self.image_keys}
        rows = stamp_files(rows, images, self.on_corrupt)
        if self.num_frames:
            return self.long_enough(rows, images, split, self.on_corrupt)
        return drop_unreadable(rows, self.image_keys, self.on_corrupt)

    def collate(self, rows: list[dict]) -> dict:
        return text_batch(rows) | {key: self.image_batch(rows, key) for key in self.image_keys}

    def image_batch(self, rows: list[dict], key: str) -> torch.Tensor:
        """The images under a key, (B, 3, H, W), or the videos, (B, F, 3, H, W)."""
        column = self.columns[key] or key
        where = [f"row {row['index']}, column {column} of {row['file']}" for row in rows]
        return torch.stack([self.picture(row, key, place) for row, place in zip(rows, where)])


def find_column(key: str, table, path: str) -> str:
    """The first of the key's usual names that the table has; ValueError with its columns where it has none."""
    for name in NAMES[key]:
        if name in table.column_names:
            return name
    names, found = " or ".join(NAMES[key]), ", ".join(table.column_names)
    raise ValueError(f"no column {names} found in {path}; columns are {found}; set --data.{key}_column.")
