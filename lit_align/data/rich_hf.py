"""RichHF-18K (arXiv 2312.10240): scores, heat maps and misaligned words of 17,760 images of Pick-a-Pic."""

import os
from pathlib import Path
from typing import Literal

import torch

from lit_align.data.archives import file_in
from lit_align.data.batch import text_batch
from lit_align.data.datamodule import AlignData
from lit_align.data.image_files import drop_unreadable, in_folder, stamp_files, stems
from lit_align.data.images import decode
from lit_align.data.tables import as_text, check_captions, columns_of, named_columns, read_rows, read_table
from lit_align.data.tfrecord import read_examples
from lit_align.paths import find

SCORES = ("aesthetics_score", "artifact_score", "misalignment_score", "overall_score")
MAPS = ("artifact_map", "misalignment_map")
WORDS = "prompt_misalignment_label"
HOME = (
    "RichHF-18K is github.com/google-research-datasets/richhf-18k (git lfs pull its train.tfrecord, dev.tfrecord and "
    "test.tfrecord); copies are Exploration/richhf-18k, and with images RAraghavarora/RichHumanFeedback: set "
    "--data.path."
)


class RichHF18K(AlignData):
    """RichHF-18K: an ImageBatch {"image", "prompt", "scores" (B, R), "maps" (B, 2, H, W), ...}.

    Scores are in [0, 1], higher is better: an artifact score is high where artifacts are few. The maps, of artifacts
    and of misalignment, are in [0, 1] and cropped as the image is. The column `prompt_misalignment_label` has a 0 for
    each word of the prompt that the image misses, and a 1 for the others.

    The published files hold neither images nor prompts but the uids of Pick-a-Pic v1: give `pick_a_pic`. Rows whose
    image is not found there are left out and counted in `summary`.

    Args:
        path: a folder with train.tfrecord, ..., or a copy in parquet: a folder, a file or a hub id.
        revision: of the hub repository.
        split: train, dev or test.
        scores: the scores in `scores`, in this order.
        pick_a_pic: Pick-a-Pic v1 (for split test its test split): a folder, a parquet file or a hub id.
        images: a folder of image files named by uid, if `pick_a_pic` is a copy without images.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    image_keys = image_columns = ("image",)
    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        split: str = "train",
        scores: list[str] | None = None,
        pick_a_pic: str | None = None,
        images: str | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.path, self.revision, self.split, self.on_corrupt = self.training_path(path), revision, split, on_corrupt
        self.scores, self.pick_a_pic, self.images = tuple(scores or SCORES), pick_a_pic, images
        if wrong := [name for name in self.scores if name not in SCORES]:
            raise ValueError(f"RichHF-18K has no score {wrong[0]}; it has {', '.join(SCORES)}: set --data.scores.")

    def published(self):
        """The split as it is published, images as they are stored, words as a list of numbers."""
        from datasets import Dataset

        place = Path(find(self.path))
        if self.smoke:
            return self.shapes_rows()
        if place.is_dir() and any(place.rglob("*.tfrecord")):
            file = file_in(place, f"{self.split}.tfrecord", HOME)
            rows = Dataset.from_dict(columns_of({k: v[0] for k, v in row.items() if v} for row in read_examples(file)))
        else:
            try:
                rows = read_rows(self.path, self.split, self.revision)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error} {HOME}") from error
        rows = as_text(rows, [name for name in rows.column_names if name in ("filename", "caption", WORDS)])
        words = [[int(x) for x in (cell.split() if isinstance(cell, str) else cell or ())] for cell in rows[WORDS][:]]
        return rows.remove_columns(WORDS).add_column(WORDS, words)

    def shapes_rows(self):
        """Rows that ship, for `smoke`: the judge's label as every score, and the image as both maps."""
        rows = read_table(self.smoke_file)
        for name in (*SCORES, *MAPS):
            rows = rows.add_column(name, rows["label_0" if name in SCORES else "jpg_0"][:])
        words = [[int(good)] * len(text.split()) for text, good in zip(rows["caption"][:], rows["label_0"][:])]
        rows = rows.add_column(WORDS, words)
        return rows.rename_column("jpg_0", "image")

    def load(self, split: str):
        if split != "train":
            return None
        self.counts[split] = {}
        rows = self.published()
        self.count(split, "rows", len(rows))
        caption = "caption" if "caption" in rows.column_names else "prompt"
        own = {"prompt": caption, "image": "image"} if "image" in rows.column_names else {}
        known = [name for name in (*SCORES, *MAPS) if name in rows.column_names]
        rows = named_columns(rows, self.path, own, known)
        rows = in_folder(
            rows, [key for key in ("image", *MAPS) if key in rows.column_names], os.path.dirname(find(self.path))
        )
        rows = stamp_files(rows, {"image": "image"}, self.on_corrupt) if own else self.with_images(rows)
        rows = self.scored(rows)
        check_captions(rows, caption)
        rows = drop_unreadable(rows, ("image", *MAPS), self.on_corrupt)
        self.count(split, "kept", len(rows))
        return rows

    def scored(self, rows):
        """The rows with all scores that are asked for."""
        if lacks := [name for name in self.scores if name not in rows.column_names]:
            raise ValueError(f"{self.path} has no {lacks[0]}: leave it out of --data.scores.")
        cells = list(zip(*(rows[name][:] for name in self.scores)))
        if wrong := [x for row in cells for x in row if x is not None and not 0 <= x <= 1]:
            raise ValueError(
                f"{self.path} holds the score {wrong[0]}; RichHF-18K's are from 0 to 1: take another copy."
            )
        whole = [i for i, row in enumerate(cells) if None not in row]
        self.count("train", "without a score", len(rows) - len(whole))
        return rows.select(whole)

    def with_images(self, rows):
        """The rows with `image` and `prompt`, of those whose uid is found in Pick-a-Pic."""
        if not self.pick_a_pic:
            raise ValueError(
                f"{self.path} holds neither images nor prompts: set --data.pick_a_pic to Pick-a-Pic v1, or --data.path "
                "to a copy with images."
            )
        table = read_rows(self.pick_a_pic, "test" if self.split == "test" else "train")
        places: dict[str, tuple[int, int]] = {}  # uid -> (row of the table, side)
        for k in (0, 1):
            for i, uid in enumerate(table[f"image_{k}_uid"][:]):
                places.setdefault(uid, (i, k))
        uids = [Path(name).stem for name in rows["columns.filename"][:]]
        files = stems(os.path.abspath(find(self.images))) if self.images else dict.fromkeys(uids)
        found = [i for i, uid in enumerate(uids) if uid in places and uid in files]
        self.count("train", "without an image", len(rows) - len(found))
        if not found:
            where = self.images or self.pick_a_pic
            raise ValueError(f"none of {len(rows)} images is in {where}: RichHF-18K's are those of Pick-a-Pic v1.")
        if not self.images:
            return beside_images(table, rows, [(i, *places[uids[i]]) for i in found])
        captions = table["caption"][:]
        rows = rows.select(found).add_column("image", [files[uids[i]] for i in found])
        rows = rows.add_column("prompt", [captions[places[uids[i]][0]] for i in found])
        return stamp_files(rows, {"image": "image"}, self.on_corrupt)

    def collate(self, rows: list[dict]) -> dict:
        batch = text_batch(rows)
        cells = lambda name: torch.stack([self.picture(row, name) for row in rows])
        batch |= {"image": cells("image"), "maps": torch.stack([cells(name)[:, 0] for name in MAPS], 1)}
        return batch | {"scores": torch.tensor([[row[name] for name in self.scores] for row in rows])}

    def picture(self, row: dict, name: str) -> torch.Tensor:
        return decode(row[name], self.image_size(row), f"row {row['index']}, column {name} of {row['file']}")


def beside_images(table, rows, places: list[tuple[int, int, int]]):
    """Rows of Pick-a-Pic with one of their images and the columns of RichHF-18K. No image is copied.

    Args:
        table, rows: Pick-a-Pic and RichHF-18K.
        places: (row of RichHF-18K, row of Pick-a-Pic, side of the image there).
    """
    from datasets import concatenate_datasets

    parts, order = [], []
    for k in (0, 1):
        mine = {i: row for row, i, side in places if side == k}  # row of the table -> row of RichHF-18K
        part = table.select_columns(["caption", f"jpg_{k}"])
        part = part.rename_columns({"caption": "prompt", f"jpg_{k}": "image"})
        for name in rows.column_names:
            cells = rows[name][:]
            cells = [cells[mine[i]] if i in mine else None for i in range(len(table))]
            part = part.add_column(name, cells, feature=rows.features[name])
        parts.append(part.select(list(mine)))
        order += list(mine.values())
    by_row = sorted(range(len(order)), key=order.__getitem__)
    return concatenate_datasets(parts).select(by_row)
