"""DiffusionDB (arXiv 2210.14896): images of Stable Diffusion with the prompts of its users."""

import json
from pathlib import Path
from typing import Literal

import torch

from lit_align.data.archives import local_folder, unpacked
from lit_align.data.batch import text_batch
from lit_align.data.datamodule import AlignData
from lit_align.data.image_files import drop_unreadable, in_folder, stamp_files
from lit_align.data.images import decode
from lit_align.data.tables import check_captions, columns_of, named_columns, read_rows
from lit_align.paths import find

FIELDS = {"p": "prompt", "se": "seed", "c": "cfg", "st": "step", "sa": "sampler"}  # of a part's JSON file
NSFW = ("image_nsfw", "prompt_nsfw")
HOME = (
    "DiffusionDB is poloclub/diffusiondb: set --data.path to it, or to a folder with images/part-000001.zip, ... and "
    "metadata.parquet, or to parquet files with its columns."
)


class DiffusionDB(AlignData):
    """DiffusionDB: an ImageBatch {"image", "prompt", ...}. Its prompts alone are read by `--data Prompts --data.path
    metadata.parquet`.

    The published parts hold 1,000 images each and part-000001.json; the NSFW scores are in metadata.parquet.

    Args:
        path: a hub id, a folder of the published files (the archives may be unpacked there), or parquet files.
        revision: of the hub repository.
        split: of parquet files.
        parts: the first parts of the 2,000 of DiffusionDB 2M, 1,000 images and 0.8 GB each.
        max_nsfw: images and prompts with a higher score are left out, also those that the publisher blurred (score 2);
            null: none is.
        streaming: read parquet files as a stream, shuffled within a buffer of `buffer_size` rows.
        buffer_size: rows of that buffer.
        on_corrupt: stop at an unreadable image, or look for them before training and leave those rows out.
    """

    image_keys = image_columns = ("image",)
    smoke_file = "checkpoints/shapes-sd/pairs/train.parquet"

    def __init__(
        self,
        path: str = "poloclub/diffusiondb",
        revision: str | None = None,
        split: str = "train",
        parts: int = 1,
        max_nsfw: float | None = 0.5,
        streaming: bool = False,
        buffer_size: int = 1000,
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.path, self.revision, self.split, self.parts = self.training_path(path), revision, split, parts
        self.max_nsfw, self.on_corrupt = max_nsfw, on_corrupt
        self.streaming, self.buffer_size = streaming, buffer_size
        if streaming and on_corrupt == "skip":
            raise ValueError("a stream cannot be searched for corrupt images before training: set on_corrupt: error.")

    def load(self, split: str):
        if split != "train":
            return None
        self.counts[split] = {}
        folder = Path(find(self.path))
        tables = self.smoke or self.path.endswith(".parquet") or any(folder.glob(f"**/{self.split}*.parquet"))
        if self.streaming and not tables:
            raise ValueError(f"{self.path} holds archives, not parquet files: set streaming: false.")
        rows = self.stored() if tables else self.unzipped()
        names = {"prompt": "caption", "image": "jpg_0"} if self.smoke else {"prompt": "prompt", "image": "image"}
        rows = in_folder(named_columns(rows, self.path, names), ("image",), "")
        if self.streaming:
            rows = rows.filter(lambda row: self.is_safe([row.get(f"columns.{name}") for name in NSFW]))
            return rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        rows = stamp_files(rows, {"image": "image_name"}, self.on_corrupt)
        self.count(split, "rows", len(rows))
        safe = range(len(rows))
        if self.max_nsfw is not None and not self.smoke:
            scores = zip(*(rows[f"columns.{name}"][:] for name in NSFW))
            safe = [i for i, cells in enumerate(scores) if self.is_safe(cells)]
        self.count(split, f"above NSFW {self.max_nsfw}, or without a score", len(rows) - len(safe))
        rows = drop_unreadable(rows.select(safe), ("image",), self.on_corrupt)
        check_captions(rows, "prompt")
        self.count(split, "kept", len(rows))
        return rows

    def is_safe(self, scores) -> bool:
        """Whether both NSFW scores are known and low enough."""
        return self.max_nsfw is None or all(x is not None and x <= self.max_nsfw for x in scores)

    def stored(self):
        """The rows of parquet files."""
        try:
            return read_rows(self.path, self.split, self.revision, self.streaming)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} {HOME}") from error

    def unzipped(self):
        """The rows of the published parts, with the path of each image and its NSFW scores."""
        from datasets import Dataset

        names = [f"part-{i:06d}" for i in range(1, self.parts + 1)]
        wanted = [f"images/{name}.zip" for name in names] + ["metadata.parquet"]
        folder = local_folder(self.path, wanted, self.revision, HOME)
        nsfw, rows = self.nsfw(folder), []
        for name in names:
            part = folder / "images" / name
            if not part.is_dir():
                if not part.with_suffix(".zip").is_file():
                    raise FileNotFoundError(f"{part} and {name}.zip are missing: lower --data.parts. {HOME}")
                part = next(unpacked([part.with_suffix(".zip")]).rglob(f"{name}.json")).parent
            for image, item in json.loads((part / f"{name}.json").read_text("utf-8")).items():
                row = {FIELDS.get(key, key): value for key, value in item.items()}
                rows.append(
                    row | {"image": str(part / image), "image_name": image} | nsfw.get(image, dict.fromkeys(NSFW))
                )
        return Dataset.from_dict(columns_of(rows))

    def nsfw(self, folder: Path) -> dict[str, dict[str, float]]:
        """Image -> its NSFW scores, of the parts that are read."""
        if self.max_nsfw is None:
            return {}
        if not (folder / "metadata.parquet").is_file():
            raise FileNotFoundError(
                f"{folder} has no metadata.parquet with the NSFW scores: add it, or set --data.max_nsfw null."
            )
        from pyarrow import parquet

        mine = [("part_id", "<=", self.parts)]
        rows = parquet.read_table(folder / "metadata.parquet", columns=["image_name", *NSFW], filters=mine)
        return {row.pop("image_name"): row for row in rows.to_pylist()}

    def collate(self, rows: list[dict]) -> dict:
        images = [
            decode(row["image"], self.image_size(row), f"row {row['index']}, column image of {row['file']}")
            for row in rows
        ]
        return text_batch(rows) | {"image": torch.stack(images)}
