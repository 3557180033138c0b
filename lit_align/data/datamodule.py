"""The base of every dataset: loaders that resume exactly, and prompts to sample from."""

import os
from collections.abc import Callable
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_align.data.batch import COLUMN, batch_of
from lit_align.data.buckets import BucketSampler, add_buckets, count_batches
from lit_align.data.encode_once import encode_rows, unpack
from lit_align.data.image_files import in_folder, stamp_files
from lit_align.data.images import decode
from lit_align.data.order import ResumableSampler, RowDataset, Rows, Stream
from lit_align.data.tables import read_prompts
from lit_align.data.videos import check_lengths, decode_video
from lit_align.paths import find

SMOKE_VIDEOS = "checkpoints/shapes-videos/pairs.parquet"  # the rows for `smoke` of a policy that makes videos
SMOKE_EDITS = "checkpoints/shapes-edits/pairs.parquet"  # and of one that edits images


class AlignData(L.LightningDataModule):
    """Base of the datasets. A subclass gives `load` (rows) and `collate` (rows -> batch); `data/batch.py` says what a
    batch holds.

    Args:
        batch_size: rows per device and step.
        val_batch_size: prompts sampled at once in validation, test and predict.
        num_workers: loader processes.
        resolution: side of square images, or height and width, pixels (default: the policy's).
        seed: of the order of rows.
        val_prompts, test_prompts, predict_prompts: files (.txt, .jsonl, .csv, .parquet) with a column `prompt`. Further
            columns are kept: rewards can ask for them, and `skill` groups the results of `test`. predict falls back on
            the test prompts.
        encode_once: encode all images and captions before training, cache them on disk, and move the encoders to the
            CPU, unless the method samples while it trains.
        buckets: train on images of several shapes, of about resolution^2 pixels and in batches of one shape, in place
            of square centres (see data/buckets.py). Validation pairs stay square, and SDXL is told the square's size.
        smoke: train on a few rows that ship with the library, in the dataset's own schema, in place of `path`.
    """

    image_keys: tuple[str, ...] = ()  # the batch keys that hold images
    image_columns: tuple[str, ...] = ()  # the table's columns that hold one image each
    smoke_file: str  # the rows for `smoke`
    takes_videos = False  # whether its images can be videos
    num_frames: int | None = None  # of a video, at `fps` a second: the policy's; None: images
    fps = 0.0
    sources: tuple[str, ...] = ()  # columns with images that the policy conditions on
    source_size = (0, 0)  # height and width of these images, pixels: the policy's

    def __init__(
        self,
        batch_size: int = 1,
        val_batch_size: int = 16,
        num_workers: int = 0,
        resolution: int | tuple[int, int] | None = None,
        seed: int = 42,
        val_prompts: str | None = None,
        test_prompts: str | None = None,
        predict_prompts: str | None = None,
        encode_once: bool = False,
        buckets: bool = False,
        smoke: bool = False,
    ):
        super().__init__()
        counts = {"batch_size": batch_size, "val_batch_size": val_batch_size, "resolution": resolution}
        for name, value in counts.items():
            if value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"data.{name} is {value}: give 1 or more.")
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.resolution, self.seed, self.encode_once, self.smoke = resolution, seed, encode_once, smoke
        self.buckets = buckets
        self.prompt_files = {"val": val_prompts, "test": test_prompts, "predict": predict_prompts or test_prompts}
        self.prompt_rows: dict[str, object] = {}  # split -> the table of its prompts, once read
        self.train = self.val = None
        self.pass_ends: list[int] = []  # batches seen at the end of each pass over a stream
        self.counts: dict[str, dict[str, int]] = {"train": {}, "val": {}}  # split -> what its rows are -> how many

    def training_path(self, path: str) -> str:
        """Where the training rows are: `path`, or the few that ship."""
        return self.smoke_file if self.smoke else path

    def load(self, split: Literal["train", "val"]):
        """The rows of a split: something with len and [], a datasets.IterableDataset, or None."""
        return None

    def collate(self, rows: list[dict]) -> dict:
        """A batch from rows; every row has its number in the file as `index`."""
        return batch_of(rows)

    def count(self, split: str, what: str, n: int) -> None:
        """Adds n to what `summary` says of a split."""
        self.counts[split][what] = self.counts[split].get(what, 0) + n

    def describe(self, split: str) -> str:
        """What was counted of a split, as words."""
        return ", ".join(f"{n:,} {what}" for what, n in self.counts[split].items() if n or what == "kept")

    def summary(self) -> str:
        """What is trained and validated on, what was left out of the published rows, and why, counted."""
        return "; ".join(f"{split}: {self.describe(split)}" for split in self.counts if self.counts[split])

    def column_names(self, split: Literal["train", "val", "test", "predict"]) -> list[str]:
        """The further columns that a reward may ask for: of the training rows, or of the split's prompt file."""
        from datasets import Dataset, IterableDataset

        if split == "train":
            rows = self.load("train") if self.train is None else self.train
        else:
            rows = self.read_prompt_rows(split) if self.prompt_files[split] else None
        names = (rows.column_names or []) if isinstance(rows, Dataset | IterableDataset) else []
        return [name.removeprefix(COLUMN) for name in names if name.startswith(COLUMN)]

    def match_policy(self) -> None:
        """Images get the policy's size, videos its frames; ValueError if the data's own resolution is another, or if
        the policy makes videos and the data are images."""
        module = self.trainer and self.trainer.lightning_module
        policy = getattr(module, "policy", None)  # absent without a trainer, or from a module that is not ours
        if not getattr(module, "uses_policy", True):
            policy = None
        if policy is not None:
            self.sources, self.source_size = policy.reads, (policy.height, policy.width)
        if not self.image_keys:
            return
        name = type(self).__name__
        if policy is None and self.resolution is None:
            raise ValueError(f"{name} has no policy to take the images' size from: set data.resolution.")
        if policy is not None and self.resolution not in (None, policy.resolution):
            raise ValueError(
                f"data.resolution is {self.resolution} and the policy's resolution is {policy.resolution}: "
                "set both to the same, or --data.resolution null, which follows the policy."
            )
        self.resolution = self.resolution or policy.resolution
        if policy is not None and policy.image_axes == 4:
            if not self.takes_videos or self.buckets:
                mend = "set --data.buckets false" if self.takes_videos else "use PreferencePairs or CaptionedImages"
                raise ValueError(f"{type(policy).__name__} makes videos, and {name} gives it images: {mend}.")
            self.num_frames, self.fps = policy.num_frames, policy.fps

    def setup(self, stage: str) -> None:
        self.match_policy()
        if stage == "fit" and self.train is None:
            self.train = self.prepare("train")
        if stage in ("fit", "validate") and self.val is None:
            self.val = self.prepare("val")
        if stage == "fit" and self.summary():
            rank_zero_info(f"{type(self).__name__}: {self.summary()}")
        if stage == "fit" and self.encode_once and not getattr(self.trainer.lightning_module, "samples_online", False):
            self.trainer.lightning_module.policy.offload_encoders()

    def prepare(self, split: str):
        """The rows of a split as training reads them."""
        rows = self.load(split)
        if self.smoke and rows is not None:
            rows = rows.select(range(min(8, len(rows))))
        if self.sources and rows is not None:
            rows = self.with_sources(rows)
        if self.buckets and split == "train":
            rows = self.in_buckets(rows)
        return encode_rows(self, rows) if self.encode_once and rows is not None else rows

    def in_buckets(self, rows):
        """The rows with a column `bucket`."""
        from datasets import Dataset

        if not self.image_columns or not isinstance(rows, Dataset):
            raise ValueError(f"{type(self).__name__} has no table with one image per cell: set --data.buckets false.")
        if isinstance(self.resolution, tuple):
            raise ValueError("buckets have the area of a square: give one resolution, or set --data.buckets false.")
        return add_buckets(rows, self.image_columns, self.resolution, self.batch_size * self.trainer.world_size)

    def image_size(self, row: dict) -> tuple[int, int]:
        """(height, width) that the images of a row get."""
        if "bucket" in row:
            return tuple(row["bucket"])
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution, self.resolution)

    def picture(self, row: dict, key: str, where: str) -> Tensor:
        """The image under a key of a row, (3, H, W), or the video, (F, 3, H, W)."""
        if self.num_frames is None:
            return decode(row[key], self.image_size(row), where)
        return decode_video(row[key], self.num_frames, self.fps, self.image_size(row), where)

    def long_enough(self, rows, columns: dict[str, str], split: str, on_corrupt: str):
        """The rows whose videos, in `columns` {key: name in the file}, are long enough; those that are cut are counted
        in `summary`."""
        kept, cut = check_lengths(rows, columns, self.num_frames, self.fps, on_corrupt)
        self.counts[split] = {}
        self.count(split, "kept", len(kept))
        self.count(
            split, f"with a video longer than {self.num_frames} frames at {self.fps:g} a second, its end cut off", cut
        )
        return kept

    def with_sources(self, rows):
        """The rows of a table with the paths of source images relative to its file, and a stamp of these files."""
        columns = {COLUMN + name: name for name in self.sources}
        if missing := [name for key, name in columns.items() if key not in (rows.column_names or ())]:
            known = ", ".join(n.removeprefix(COLUMN) for n in rows.column_names or () if n.startswith(COLUMN))
            raise ValueError(
                f"the policy edits images, and {rows[0].get('file', 'the data')} has no column `{missing[0]}` with them"
                f" (further columns: {known or 'none'})."
            )
        rows = in_folder(rows, tuple(columns), os.path.dirname(find(rows[0]["file"])))
        return stamp_files(rows, columns, "error")

    def read_sources(self, batch: dict) -> dict:
        """The batch with the images of its source columns as tensors (3, H, W), of the size of its other images."""
        columns = dict(batch["columns"])
        shapes = [batch[key].shape[-2:] for key in self.image_keys if key in batch]
        for name in self.sources:
            where = [f"row {i}, column {name}" for i in batch["index"]]
            columns[name] = [decode(c, tuple((*shapes, self.source_size)[0]), w) for c, w in zip(columns[name], where)]
        return batch | {"columns": columns}

    def collate_prompts(self, rows: list[dict]) -> dict:
        """A PromptBatch: the row numbers seed the noise."""
        batch = self.read_sources(batch_of(rows))
        return batch | {"seed": list(batch["index"])}

    def settings(self) -> dict:
        """What `collate` may depend on: resolution, seed, and the attributes that a subclass adds."""
        own = set(vars(self)) - set(vars(AlignData()))
        return {k: v for k, v in sorted(vars(self).items()) if k in own or k in ("resolution", "seed")}

    def state_dict(self) -> dict:
        return {"pass_ends": self.pass_ends}

    def load_state_dict(self, state: dict) -> None:
        self.pass_ends = state["pass_ends"]

    def __getstate__(self) -> dict:  # loader workers need `collate`, not what trains
        return vars(self) | {"trainer": None, "train": None, "val": None, "prompt_rows": {}}

    # Loaders. Lightning builds them anew (predict, several devices): every argument goes by keyword.

    def train_dataloader(self) -> DataLoader:
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
        ranks = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        dataset, sampler = self.training_order(lambda: progress.processed, **ranks)
        generator = torch.Generator().manual_seed(self.seed)  # leaves the global random state alone
        return self.row_loader(dataset, sampler=sampler, drop_last=True, generator=generator)

    def training_order(self, seen: Callable[[], int], num_replicas: int, rank: int) -> tuple[Dataset, object]:
        """The dataset and its sampler for this rank; `seen` gives the batches that this rank has trained on."""
        from datasets import IterableDataset
        from datasets.distributed import split_dataset_by_node

        if isinstance(self.train, IterableDataset):
            rows = split_dataset_by_node(self.train, rank, num_replicas)
            return RowDataset(), Stream(rows, self.batch_size, seen, self.pass_ends)
        kept = self.train["bucket"][:] if self.buckets else None
        step = self.batch_size * num_replicas
        batches = count_batches(kept, step) if kept else len(self.train) // num_replicas // self.batch_size
        if not batches:
            found = f"{len(self.train)} training rows do not fill one batch of {self.batch_size} on each device"
            raise ValueError(f"{found}: lower --data.batch_size.")
        limit = self.trainer.limit_train_batches  # a number of batches, or a share
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
        order = {"seed": self.seed, "num_replicas": num_replicas, "rank": rank}
        sampler = BucketSampler if kept else ResumableSampler
        return Rows(self.train), sampler(kept or self.train, self.batch_size, batches, seen, **order)

    def row_loader(self, dataset: Dataset, **kwargs) -> DataLoader:
        return DataLoader(
            dataset=dataset,
            batch_size=self.batch_size,
            collate_fn=self.collate_rows,
            num_workers=self.num_workers,
            **kwargs,
        )

    def collate_rows(self, rows: list[dict]) -> dict:
        """A batch from rows as `load` gives them, or as `encode_once` stored them."""
        return self.read_sources({"columns": {}} | (unpack(rows) if "encoded" in rows[0] else self.collate(rows)))

    def val_dataloader(self) -> list[DataLoader]:
        pairs = [self.row_loader(Rows(self.val))] if self.val is not None else []
        loaders = pairs + ([self.prompt_loader("val")] if self.prompt_files["val"] else [])
        if not loaders and self.trainer and self.trainer.state.fn == "validate":
            raise ValueError("nothing to validate on: set --data.val_prompts to a file with a column `prompt`.")
        return loaders

    def test_dataloader(self) -> DataLoader:
        return self.prompt_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self.prompt_loader("predict")

    def read_prompt_rows(self, split: str):
        """The table of a split's prompts."""
        if split not in self.prompt_rows:
            self.prompt_rows[split] = read_prompts(self.prompt_files[split])
        return self.prompt_rows[split]

    def prompt_loader(self, split: str) -> DataLoader:
        if not self.prompt_files[split]:
            raise ValueError(f"nothing to sample from: set --data.{split}_prompts to a file with a column `prompt`.")
        rows = self.read_prompt_rows(split)
        rows = Rows(self.with_sources(rows) if self.sources else rows)
        return DataLoader(dataset=rows, batch_size=self.val_batch_size, collate_fn=self.collate_prompts)
