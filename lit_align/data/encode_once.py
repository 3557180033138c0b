"""Latents and caption embeddings, computed once before training and cached on disk."""

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.batch import COLUMN, batch_of

ENCODE_BATCH = 32  # rows; a batch's bytes must stay below Arrow's 2 GiB


def encode_rows(data, rows):
    """The rows of an AlignData with their images as latents and their captions as embeddings, cached on disk."""
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    if not isinstance(rows, Dataset):
        raise ValueError(f"{type(data).__name__} has no table on disk to cache: set --data.encode_once false.")
    trainer, policy = data.trainer, data.trainer.lightning_module.policy
    device = policy.encoder_device = trainer.strategy.root_device

    def encode(columns: dict[str, list], places: list[int]) -> dict[str, list]:
        cells = zip(places, zip(*columns.values()))
        batch = data.collate([{"index": i, **dict(zip(columns, row))} for i, row in cells])
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(data.seed + places[0])  # the posterior's sample is the same whenever it is drawn
            return pack(batch, policy, data.image_keys)

    if not trainer.is_global_zero:
        trainer.strategy.barrier("encode_once")
    rank_zero_info(f"encode_once: {len(rows)} rows")
    encoded = rows.map(
        encode,
        batched=True,
        with_indices=True,
        batch_size=ENCODE_BATCH,
        writer_batch_size=ENCODE_BATCH,
        remove_columns=rows.column_names,
        new_fingerprint=Hasher.hash(f"{rows._fingerprint} {policy.fingerprint} {data.resolution} {data.seed}"),
        desc="encode_once",
    )
    if trainer.is_global_zero:
        trainer.strategy.barrier("encode_once")
    policy.encoder_device = None
    return encoded


def encode_images(policy, images: torch.Tensor) -> torch.Tensor:
    """Latents (..., C, h, w) of images (..., 3, H, W), through `policy.encode`, which takes (N, 3, H, W)."""
    return policy.encode(images.flatten(0, -4)).unflatten(0, images.shape[:-3])


def pack(batch: dict, policy, image_keys: tuple[str, ...]) -> dict[str, list]:
    """A batch as columns of a table: its lists, and `encoded`, all tensors of a row as safetensors bytes."""
    from safetensors.torch import save

    tensors = {f"{k}_latents": encode_images(policy, batch[k]) for k in image_keys}
    if not policy.trains_text:
        tensors |= {f"cond.{k}": v for k, v in policy.condition(batch["prompt"]).items()}
    tensors |= {k: v for k, v in batch.items() if torch.is_tensor(v) and k not in image_keys}
    tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
    lists = {k: v for k, v in batch.items() if isinstance(v, list)}
    lists |= {COLUMN + name: cells for name, cells in batch.get("columns", {}).items()}
    return lists | {
        "encoded": [save({k: v[i].clone() for k, v in tensors.items()}) for i in range(len(batch["prompt"]))]
    }


def unpack(rows: list[dict]) -> dict:
    """A batch from rows of `pack`: `<image>_latents`, `cond`, and what else the batch held."""
    from safetensors.torch import load

    batch = batch_of(rows)
    encoded = [load(blob) for blob in batch.pop("encoded")]
    tensors = {k: torch.stack([row[k] for row in encoded]) for k in encoded[0]}
    if cond := {k.removeprefix("cond."): v for k, v in tensors.items() if k.startswith("cond.")}:
        batch["cond"] = cond
    return batch | {k: v for k, v in tensors.items() if not k.startswith("cond.")}
