"""The base of every dataset: loaders that resume exactly, prompts to sample from, latents cached once."""

from itertools import islice

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lit_align.data.tables import read_prompts


class Rows(torch.utils.data.Dataset):
    """A datasets.Dataset whose rows know their number."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {**self.rows[index], "index": index}


class Stream(IterableDataset):
    """A streamed dataset that starts behind the first `start` rows, once, and reshuffles by epoch."""

    def __init__(self, rows, start: int, epoch):
        self.rows, self.start, self.epoch = rows, start, epoch

    def __iter__(self):
        start, self.start = self.start, 0
        self.rows.set_epoch(self.epoch())
        for index, row in islice(enumerate(self.rows), start, None):
            yield {**row, "index": index}


class ResumableSampler(DistributedSampler):
    """Rows in an order that depends on (seed, epoch) alone; the first pass leaves out the `start` rows already seen."""

    def __init__(self, dataset, start: int = 0, **kwargs):
        super().__init__(dataset, shuffle=True, drop_last=True, **kwargs)
        self.start = start

    def __iter__(self):
        start, self.start = self.start, 0
        return islice(super().__iter__(), start, None)


def prompt_batch(rows: list[dict]) -> dict:
    """Rows with the same keys as a batch of lists."""
    return {key: [row[key] for row in rows] for key in rows[0]}


class AlignData(L.LightningDataModule):
    """Base of the datasets. A subclass gives `load` (rows) and `collate` (rows -> batch).

    Args:
        batch_size: rows per device and step.
        val_batch_size: prompts sampled at once in validation, test and predict.
        num_workers: loader processes.
        resolution: height and width of images, pixels.
        seed: of the order of rows.
        val_prompts, test_prompts, predict_prompts: files (.txt, .jsonl, .csv, .parquet) with a column `prompt`, and
            `skill` if results are to be grouped; predict falls back on the test prompts.
        encode_once: encode all images and captions before training, cache them on disk, and let the encoders go to the CPU.
    """

    images: tuple[str, ...] = ()  # the batch keys that hold images

    def __init__(
        self,
        batch_size: int = 1,
        val_batch_size: int = 16,
        num_workers: int = 0,
        resolution: int = 512,
        seed: int = 42,
        val_prompts: str | None = None,
        test_prompts: str | None = None,
        predict_prompts: str | None = None,
        encode_once: bool = False,
    ):
        super().__init__()
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.resolution, self.seed, self.encode_once = resolution, seed, encode_once
        self.prompts = {"val": val_prompts, "test": test_prompts, "predict": predict_prompts or test_prompts}
        self.train = self.val = None

    def load(self, split: str):
        """The rows of split "train" or "val": something with len and [], a Stream's source, or None."""
        return None

    def collate(self, rows: list[dict]) -> dict:
        """A batch from rows; every row has its number as `index`."""
        return prompt_batch(rows)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.train is None:
            self.train = self.load("train")
        if stage in ("fit", "validate") and self.val is None:
            self.val = self.load("val")
        if stage == "fit" and self.encode_once:
            self.train, self.val = self.encoded(self.train), self.encoded(self.val)
            self.trainer.lightning_module.policy.offload_encoders()

    # Loaders

    def train_dataloader(self) -> DataLoader:
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed  # this epoch, by the run that is resumed
        ranks = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        options = {"batch_size": self.batch_size, "collate_fn": self._collate(), "num_workers": self.num_workers}
        options |= {"drop_last": True, "generator": torch.Generator().manual_seed(self.seed)}  # leaves the global RNG alone
        if not hasattr(self.train, "__len__"):
            from datasets.distributed import split_dataset_by_node

            rows = split_dataset_by_node(self.train, ranks["rank"], ranks["num_replicas"])
            return DataLoader(Stream(rows, seen * self.batch_size, lambda: self.trainer.current_epoch), **options)
        batches = len(self.train) // ranks["num_replicas"] // self.batch_size
        if not batches:
            raise ValueError(f"{len(self.train)} training rows do not fill one batch of {self.batch_size} on each device.")
        start = seen % batches * self.batch_size
        return DataLoader(self.rows(self.train), sampler=ResumableSampler(self.train, start, seed=self.seed, **ranks), **options)

    def val_dataloader(self) -> list[DataLoader]:
        loaders = [self._prompt_loader("val")] if self.prompts["val"] else []
        if self.val is not None:
            options = {"batch_size": self.batch_size, "collate_fn": self._collate(), "num_workers": self.num_workers}
            loaders.insert(0, DataLoader(self.rows(self.val), **options))
        return loaders

    def test_dataloader(self) -> DataLoader:
        return self._prompt_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._prompt_loader("predict")

    def rows(self, rows) -> torch.utils.data.Dataset:
        return Rows(rows)

    def _prompt_loader(self, stage: str) -> DataLoader:
        if not self.prompts[stage]:
            raise ValueError(f"there is nothing to sample from: set --data.{stage}_prompts to a file with a column `prompt`.")
        return DataLoader(Rows(read_prompts(self.prompts[stage])), batch_size=self.val_batch_size, collate_fn=prompt_batch)

    # Latents and embeddings, cached

    def _collate(self):
        return self._collate_encoded if self.encode_once else self.collate

    def _collate_encoded(self, rows: list[dict]) -> dict:
        columns = [k for k in rows[0] if k.startswith(("cond.", "latents."))]
        tensors = {k: torch.stack([torch.as_tensor(row[k]) for row in rows]) for k in columns}
        batch = {f"{k.removeprefix('latents.')}_latents": v for k, v in tensors.items() if k.startswith("latents.")}
        batch["cond"] = {k.removeprefix("cond."): v for k, v in tensors.items() if k.startswith("cond.")}
        return batch | {k: [row[k] for row in rows] for k in rows[0] if k not in columns}

    def encoded(self, rows):
        """The rows with their images as latents and their captions as embeddings, computed once and cached on disk."""
        from datasets import Array2D, Array3D, Features, List, Value

        if rows is None:
            return None
        trainer, policy = self.trainer, self.trainer.lightning_module.policy
        policy.encoder_device = trainer.strategy.root_device
        names = list(self.collate([{**rows[0], "index": 0}]))
        plain = [k for k in names if k not in (*self.images, "index", "prompt")]

        def encode(columns: dict, indices: list[int]) -> dict:
            batch = self.collate([dict(zip(columns, values), index=i) for i, *values in zip(indices, *columns.values())])
            out = {"prompt": batch["prompt"]} | {k: batch[k] for k in plain}
            out |= {f"latents.{k}": policy.encode(batch[k]).cpu().numpy() for k in self.images}
            with torch.no_grad():
                return out | {f"cond.{k}": v.float().cpu().numpy() for k, v in policy.condition(batch["prompt"]).items()}

        sample = encode({k: [v] for k, v in rows[0].items()}, [0])
        shape = {1: lambda s: List(Value("float32")), 2: lambda s: Array2D(s, "float32"), 3: lambda s: Array3D(s, "float32")}
        features = {k: shape[v[0].ndim](v[0].shape) for k, v in sample.items() if k.startswith(("cond.", "latents."))}
        features |= {"prompt": Value("string")} | {k: Value("float32") for k in plain}
        if not trainer.is_global_zero:
            trainer.strategy.barrier("encode_once")
        rank_zero_info(f"encode_once: {len(rows)} rows")
        out = rows.map(
            encode,
            batched=True,
            with_indices=True,
            batch_size=32,
            remove_columns=rows.column_names,
            features=Features(features),
            new_fingerprint=_hash(f"{rows._fingerprint} {policy.fingerprint} {self.resolution} {self.seed}"),
            desc="encode_once",
        )
        if trainer.is_global_zero:
            trainer.strategy.barrier("encode_once")
        return out.with_format("numpy")


def _hash(text: str) -> str:
    from datasets.fingerprint import Hasher

    return Hasher.hash(text)
