"""What a batch holds: every key, its shape, who makes it and who reads it. A batch is a plain dict.

B rows; images are float in [0, 1]; latents are what `policy.encode` returns. Lists run over the rows, in their order.
"""

from typing import NotRequired, TypedDict

from torch import Tensor

COLUMN = "columns."  # the prefix of a file's further columns inside a table: no name of a user's collides with ours


class Batch(TypedDict):
    """What every batch holds. Made by each dataset's `collate`.

    prompt: B captions. Read by all methods and rewards.
    index: B row numbers in the file, from 0. Read by error messages, and by callbacks that name images.
    columns: every further column of the file under its own name, a list of B cells, None where a cell is empty; empty
        for datasets without a file. Read by rewards that name a column, and by reports (`skill` groups a table).
    cond: caption embeddings {name: (B, ...)}, with `encode_once` unless a text encoder is trained. Read by
        `Algorithm.cond`, which embeds `prompt` where it is absent.
    """

    prompt: list[str]
    index: list[int]
    columns: dict[str, list]
    cond: NotRequired[dict[str, Tensor]]


class PromptBatch(Batch):
    """Prompts to sample from in validate, test and predict. Made by `AlignData`'s prompt loaders.

    seed: B seeds of the initial noise: the row numbers, so that a prompt gets the same noise on any number of devices.
        Read by `draw`, which samples.
    """

    seed: list[int]


class PairBatch(Batch, total=False):
    """A preferred and another image per prompt. Made by PreferencePairs, Comparisons and the datasets of judged images
    (`Judged`); with latents alone by methods that sample their own pairs (OnlinePreference, SPIN, PSO).

    win, lose: (B, 3, H, W). Read by preference methods, and by reward modelling as they are.
    win_latents, lose_latents: (B, C, h, w), which replace the images if `encode_once` is set.
    label: (B,), 1 where `win` is preferred and 0.5 in a tie; absent where there are no ties. Read by methods of ties.
    weight: (B,), each pair's weight in the loss, of mean 1 over the dataset; absent where pairs count the same. Read by
        preference methods and by reward modelling.
    p: (B,), the probability that `win` is preferred. Made and read by NashMD.
    """

    win: Tensor
    lose: Tensor
    win_latents: Tensor
    lose_latents: Tensor
    label: Tensor
    weight: Tensor
    p: Tensor


class ImageBatch(Batch, total=False):
    """One image per caption. Made by Shapes, CaptionedImages, DiffusionDB, RichHF18K, and the datasets of judged images
    with `binary`; with latents and weights by reward-weighted methods.

    image: (B, 3, H, W). Read by supervised fine-tuning, KTO, and methods with a pre-training loss.
    image_latents: (B, C, h, w), which replace the images if `encode_once` is set.
    label: (B,), 1 for a desirable image, 0 for an undesirable one. Read by KTO.
    weight: (B,), each sample's weight in the denoising loss. Made and read by reward-weighted methods.
    scores: (B, R), R scores of the image, higher is better. Made by RichHF18K, read by rewards-in-context.
    maps: (B, M, H, W) in [0, 1], heat maps over the image. Made by RichHF18K.
    """

    image: Tensor
    image_latents: Tensor
    label: Tensor
    weight: Tensor
    scores: Tensor
    maps: Tensor


class RankingBatch(Batch, total=False):
    """K images per prompt with R scores each, higher is better. Made by Rankings, and by the datasets of ranked images
    with `list_size`; read by ranking methods and rewards-in-context.

    images: (B, K, 3, H, W).
    images_latents: (B, K, C, h, w), which replace the images if `encode_once` is set.
    scores: (B, K, R).
    """

    images: Tensor
    images_latents: Tensor
    scores: Tensor


def batch_of(rows: list[dict]) -> dict:
    """Rows of a table as lists, one per column: those named `columns.<name>` under the key `columns`."""
    lists = {key: [row[key] for row in rows] for key in rows[0] if key not in ("file", "stamp")}
    columns = {key.removeprefix(COLUMN): lists.pop(key) for key in list(lists) if key.startswith(COLUMN)}
    return lists | {"columns": columns}


def text_batch(rows: list[dict]) -> Batch:
    """What every batch holds, from rows of a table: `prompt`, `index` and `columns`. ValueError if a caption is no
    text."""
    for row in rows:
        if not isinstance(row["prompt"], str):
            raise ValueError(f"row {row['index']} of {row['file']} has the caption {row['prompt']!r}: give one text.")
    kept = [key for key in rows[0] if key in ("prompt", "index") or key.startswith(COLUMN)]
    return batch_of([{key: row[key] for key in kept} for row in rows])
