"""The base of every dataset: loaders that resume exactly, prompts to sample from, latents cached once."""

from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from lit_align.data.order import ResumableSampler, RowDataset, Rows, Stream
from lit_align.data.tables import read_prompts


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
        encode_once: encode all images and captions before training, cache them on disk, and let the encoders go to the
            CPU, unless the method draws samples: it reads prompts as they are.
        smoke: a dataset with a published schema reads a few rows of it that ship with the library, in place of `path`.
    """

    images: tuple[str, ...] = ()  # the batch keys that hold images
    example: str  # those few rows

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
        smoke: bool = False,
    ):
        super().__init__()
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.resolution, self.seed, self.encode_once, self.smoke = resolution, seed, encode_once, smoke
        self.prompts = {"val": val_prompts, "test": test_prompts, "predict": predict_prompts or test_prompts}
        self.train = self.val = None
        self.ends: list[int] = []  # of a stream's passes

    def source(self, path: str) -> str:
        """Where the training rows are: `path`, or the few that ship."""
        return self.example if self.smoke else path

    def load(self, split: str):
        """The rows of split "train" or "val": something with len and [], a datasets.IterableDataset, or None."""
        return None

    def collate(self, rows: list[dict]) -> dict:
        """A batch from rows; every row has its number as `index`."""
        return prompt_batch(rows)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.train is None:
            self.train = self._prepared("train")
        if stage in ("fit", "validate") and self.val is None:
            self.val = self._prepared("val")
        if stage == "fit" and self.encode_once and not getattr(self.trainer.lightning_module, "samples_online", False):
            self.trainer.lightning_module.policy.offload_encoders()

    def _prepared(self, split: str):
        rows = self.load(split)
        if self.smoke and rows is not None:
            rows = rows.select(range(8))
        return self.encoded(rows) if self.encode_once and rows is not None else rows

    def state_dict(self) -> dict:
        return {"ends": self.ends}

    def load_state_dict(self, state: dict) -> None:
        self.ends = state["ends"]

    def __getstate__(self) -> dict:  # loader workers need `collate`, not what trains
        return vars(self) | {"trainer": None, "train": None, "val": None}

    # Loaders

    def train_dataloader(self) -> DataLoader:
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
        ranks = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        data, sampler = self._training_order(lambda: progress.processed, **ranks)
        generator = torch.Generator().manual_seed(self.seed)  # leaves the global random state alone
        return self._loader(data, sampler=sampler, drop_last=True, generator=generator)

    def _training_order(self, seen: Callable[[], int], num_replicas: int, rank: int):
        from datasets import IterableDataset
        from datasets.distributed import split_dataset_by_node

        if isinstance(self.train, IterableDataset):
            rows = split_dataset_by_node(self.train, rank, num_replicas)
            return RowDataset(), Stream(rows, self.batch_size, seen, self.ends)
        batches = len(self.train) // num_replicas // self.batch_size
        if not batches:
            found = f"{len(self.train)} training rows do not fill one batch of {self.batch_size} on each device"
            raise ValueError(f"{found}: lower --data.batch_size.")
        limit = self.trainer.limit_train_batches  # a number of batches, or a share
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
        order = {"seed": self.seed, "num_replicas": num_replicas, "rank": rank}
        return Rows(self.train), ResumableSampler(self.train, self.batch_size, batches, seen, **order)

    def _loader(self, data: Dataset, **kwargs) -> DataLoader:
        return DataLoader(data, self.batch_size, collate_fn=self._collate, num_workers=self.num_workers, **kwargs)

    def val_dataloader(self) -> list[DataLoader]:
        pairs = [self._loader(Rows(self.val))] if self.val is not None else []
        return pairs + ([self._prompt_loader("val")] if self.prompts["val"] else [])

    def test_dataloader(self) -> DataLoader:
        return self._prompt_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._prompt_loader("predict")

    def _prompt_loader(self, stage: str) -> DataLoader:
        if not self.prompts[stage]:
            raise ValueError(f"nothing to sample from: set --data.{stage}_prompts to a file with a column `prompt`.")
        return DataLoader(Rows(read_prompts(self.prompts[stage])), self.val_batch_size, collate_fn=prompt_batch)

    # Latents and embeddings, cached

    def _collate(self, rows: list[dict]) -> dict:
        return unpack(rows) if "encoded" in rows[0] else self.collate(rows)

    def encoded(self, rows):
        """The rows with their images as latents and their captions as embeddings, computed once and cached on disk."""
        from datasets import Dataset
        from datasets.fingerprint import Hasher

        if not isinstance(rows, Dataset):
            raise ValueError(f"{type(self).__name__} has no table on disk to cache: set --data.encode_once false.")
        trainer, policy = self.trainer, self.trainer.lightning_module.policy
        device = policy.encoder_device = trainer.strategy.root_device

        def encode(columns: dict[str, list], places: list[int]) -> dict[str, list]:
            cells = zip(places, zip(*columns.values()))
            batch = self.collate([{"index": i, **dict(zip(columns, row))} for i, row in cells])
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(self.seed + places[0])  # the posterior's sample is the same whenever it is drawn
                return pack(batch, policy, self.images)

        if not trainer.is_global_zero:
            trainer.strategy.barrier("encode_once")
        rank_zero_info(f"encode_once: {len(rows)} rows")
        out = rows.map(
            encode,
            batched=True,
            with_indices=True,
            batch_size=ENCODED_AT_ONCE,
            writer_batch_size=ENCODED_AT_ONCE,
            remove_columns=rows.column_names,
            new_fingerprint=Hasher.hash(f"{rows._fingerprint} {policy.fingerprint} {self.resolution} {self.seed}"),
            desc="encode_once",
        )
        if trainer.is_global_zero:
            trainer.strategy.barrier("encode_once")
        policy.encoder_device = None
        return out


ENCODED_AT_ONCE = 32  # rows; a batch's bytes must stay below Arrow's 2 GiB


def pack(batch: dict, policy, images: tuple[str, ...]) -> dict[str, list]:
    """A batch as columns: its lists, and `encoded`, all tensors of a row in safetensors bytes."""
    from safetensors.torch import save

    tensors = {f"{k}_latents": policy.encode(batch[k]) for k in images}
    if not policy.trains_text:
        tensors |= {f"cond.{k}": v for k, v in policy.condition(batch["prompt"]).items()}
    tensors |= {k: v for k, v in batch.items() if torch.is_tensor(v) and k not in images}
    tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
    encoded = [save({k: v[i].clone() for k, v in tensors.items()}) for i in range(len(batch["prompt"]))]
    return {k: v for k, v in batch.items() if not torch.is_tensor(v)} | {"encoded": encoded}


def unpack(rows: list[dict]) -> dict:
    """A batch from rows of `pack`: `<image>_latents`, `cond`, and what else the batch held."""
    from safetensors.torch import load

    batch = prompt_batch(rows)
    encoded = [load(blob) for blob in batch.pop("encoded")]
    tensors = {k: torch.stack([row[k] for row in encoded]) for k in encoded[0]}
    if cond := {k.removeprefix("cond."): v for k, v in tensors.items() if k.startswith("cond.")}:
        batch["cond"] = cond
    return batch | {k: v for k, v in tensors.items() if not k.startswith("cond.")}
