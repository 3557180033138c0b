"""The base of every dataset: loaders that resume exactly, and prompts to sample from."""

from collections.abc import Callable
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from lit_align.data.batch import COLUMN, batch_of
from lit_align.data.buckets import BucketSampler, add_buckets, count_batches
from lit_align.data.encode_once import encode_rows, unpack
from lit_align.data.order import ResumableSampler, RowDataset, Rows, Stream
from lit_align.data.tables import read_prompts


def prompt_batch(rows: list[dict]) -> dict:
    """A PromptBatch: the row numbers seed the noise."""
    batch = batch_of(rows)
    return batch | {"seed": list(batch["index"])}


class AlignData(L.LightningDataModule):
    """Base of the datasets. A subclass gives `load` (rows) and `collate` (rows -> batch); `data/batch.py` says what a
    batch holds.

    Args:
        batch_size: rows per device and step.
        val_batch_size: prompts sampled at once in validation, test and predict.
        num_workers: loader processes.
        resolution: height and width of images, pixels (default: the policy's).
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

    def __init__(
        self,
        batch_size: int = 1,
        val_batch_size: int = 16,
        num_workers: int = 0,
        resolution: int | None = None,
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
            if value is not None and value < 1:
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

    def match_resolution(self) -> None:
        """Images get the policy's resolution unless their own is given; ValueError if the two differ."""
        module = self.trainer and self.trainer.lightning_module
        policy = getattr(module, "policy", None)  # absent without a trainer, or from a module that is not ours
        if not getattr(module, "uses_policy", True):
            policy = None
        if not self.image_keys:
            return
        if policy is None and self.resolution is None:
            raise ValueError(f"{type(self).__name__} has no policy to take the images' size from: set data.resolution.")
        if policy is not None and self.resolution not in (None, policy.resolution):
            raise ValueError(
                f"data.resolution is {self.resolution} and the policy's resolution is {policy.resolution}: "
                "set both to the same, or --data.resolution null, which follows the policy."
            )
        self.resolution = self.resolution or policy.resolution

    def setup(self, stage: str) -> None:
        if stage in ("fit", "validate"):
            self.match_resolution()
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
        if self.buckets and split == "train":
            rows = self.in_buckets(rows)
        return encode_rows(self, rows) if self.encode_once and rows is not None else rows

    def in_buckets(self, rows):
        """The rows with a column `bucket`."""
        from datasets import Dataset

        if not self.image_columns or not isinstance(rows, Dataset):
            raise ValueError(f"{type(self).__name__} has no table with one image per cell: set --data.buckets false.")
        return add_buckets(rows, self.image_columns, self.resolution, self.batch_size * self.trainer.world_size)

    def image_size(self, row: dict) -> tuple[int, int]:
        """(height, width) that the images of a row get."""
        return tuple(row["bucket"]) if "bucket" in row else (self.resolution, self.resolution)

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
        return {"columns": {}} | (unpack(rows) if "encoded" in rows[0] else self.collate(rows))

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
        rows = Rows(self.read_prompt_rows(split))
        return DataLoader(dataset=rows, batch_size=self.val_batch_size, collate_fn=prompt_batch)
