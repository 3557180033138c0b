"""Latents and caption embeddings, computed once before training and cached on disk."""

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.batch import COLUMN, batch_of
from lit_align.data.images import READER
from lit_align.diffusion.conditioning import fill_tensors

ENCODE_BATCH = 32  # rows; a batch's bytes must stay below Arrow's 2 GiB


def encode_rows(data, rows):
    """The rows of an AlignData with their images as latents and their captions as embeddings, cached on disk."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        raise ValueError(f"{type(data).__name__} has no table on disk to cache: set --data.encode_once false.")
    trainer, policy = data.trainer, data.trainer.lightning_module.policy
    device = policy.encoder_device = trainer.strategy.root_device

    def encode(columns: dict[str, list], places: list[int]) -> dict[str, list]:
        rows = [{"index": i, **dict(zip(columns, row))} for i, row in zip(places, zip(*columns.values()))]
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(data.seed + places[0])  # the posterior's sample is the same whenever it is drawn
            return pack_by_size(data, rows, policy)

    key = cache_key(data, rows, policy)
    file = cache_file(key)
    if not trainer.is_global_zero:
        trainer.strategy.barrier("encode_once")
    done = f"latents and captions of {len(rows)} rows are read from" if file.exists() else f"{len(rows)} rows, into"
    rank_zero_info(f"encode_once: {done} {file}")
    encoded = rows.map(
        encode,
        batched=True,
        with_indices=True,
        batch_size=ENCODE_BATCH,
        writer_batch_size=ENCODE_BATCH,
        remove_columns=rows.column_names,
        new_fingerprint=key,
        cache_file_name=str(file),
        load_from_cache_file=True,
        desc="encode_once",
    )
    if trainer.is_global_zero:
        trainer.strategy.barrier("encode_once")
    policy.encoder_device = None
    return encoded


def cache_key(data, rows, policy) -> str:
    """A hash of all that the encoded rows depend on: the rows (with the stamps of their image files), the dataset's
    settings, the image reader, and the encoders."""
    from datasets.fingerprint import Hasher

    made = [type(data).__qualname__, data.settings(), READER, policy.trains_text, policy.fingerprint]
    return Hasher.hash([rows._fingerprint, made, encoder_fingerprint(policy)])


def cache_file(key: str) -> Path:
    """Where the rows of a key are cached: beside the other caches of `datasets` (HF_DATASETS_CACHE)."""
    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE) / "lit_align"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"encode_once-{key}.arrow"


def encoder_fingerprint(policy) -> str:
    """A hash of the weights and settings of a policy's VAE, text encoders and tokenizers; without text encoders that
    are trained, since captions are not cached then. Takes about 0.2 s per GB of weights on a CPU."""
    import xxhash

    found = xxhash.xxh3_128()
    trained = policy.encoder_names if policy.trains_text else ()
    for name, part in sorted(policy.pipe.components.items()):
        if name in (policy.denoiser_name, *trained):
            continue
        if isinstance(part, torch.nn.Module):
            found.update(f"{name} {part.config}".encode())
            for tensor in part.state_dict().values():
                found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        elif "tokenizer" in name and part is not None:
            found.update(f"{name} {part.model_max_length} {sorted(part.get_vocab().items())}".encode())
    return found.hexdigest()


def encode_images(policy, images: torch.Tensor) -> torch.Tensor:
    """Latents (..., C, h, w) of images (..., 3, H, W), through `policy.encode`, which takes (N, 3, H, W); of videos
    likewise."""
    axes = policy.image_axes
    return policy.encode(images.flatten(0, -1 - axes)).unflatten(0, images.shape[:-axes])


def pack_by_size(data, rows: list[dict], policy) -> dict[str, list]:
    """`pack` of the batches that the rows of each bucket make, in the order of the rows; without buckets, of one."""
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row.get("bucket", ())), []).append(i)
    packed: list[dict] = [{}] * len(rows)
    for bucket, members in groups.items():
        batch = data.collate([rows[i] for i in members])
        columns = pack(batch, policy, data.image_keys, data.read_sources({"columns": {}} | batch)["columns"])
        columns |= {"bucket": [list(bucket)] * len(members)} if bucket else {}
        for k, i in enumerate(members):
            packed[i] = {name: cells[k] for name, cells in columns.items()}
    return {name: [row[name] for row in packed] for name in packed[0]}


def pack(batch: dict, policy, image_keys: tuple[str, ...], columns: dict[str, list]) -> dict[str, list]:
    """A batch as columns of a table: its lists, and `encoded`, all tensors of a row as safetensors bytes. `columns` are
    its further columns, source images as tensors."""
    from safetensors.torch import save

    tensors = {f"{k}_latents": encode_images(policy, batch[k]) for k in image_keys}
    if not policy.trains_text:
        tensors |= {f"cond.{k}": v for k, v in policy.condition(batch["prompt"], columns).items()}
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

    batch = batch_of([{k: v for k, v in row.items() if k != "bucket"} for row in rows])
    encoded = [load(blob) for blob in batch.pop("encoded")]
    columns = {k: [row[k][None] for row in encoded] for k in encoded[0]}
    tensors = {k: torch.cat(fill_tensors(v) if k.startswith("cond.") else v) for k, v in columns.items()}
    if cond := {k.removeprefix("cond."): v for k, v in tensors.items() if k.startswith("cond.")}:
        batch["cond"] = cond
    return batch | {k: v for k, v in tensors.items() if not k.startswith("cond.")}
