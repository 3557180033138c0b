"""A denoiser's conditioning: a dict of tensors (B, ...), of which some differ in length from prompt to prompt."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def fill_tensors(values: list[Tensor]) -> list[Tensor]:
    """Tensors (B, ...) with equal axes but the first: the shorter ones are filled with zeros at their end."""
    longest = [max(sizes) for sizes in zip(*(v.shape[1:] for v in values), strict=True)]
    filled = []
    for v in values:
        missing = [n - size for n, size in zip(longest, v.shape[1:])]
        filled.append(pad(v, [k for m in reversed(missing) for k in (0, m)]) if any(missing) else v)
    return filled


def fill_conditioning(conds: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Conditioning of several batches with texts of one length: the shorter ones and their masks are filled with zeros.
    Keys are the last one's."""
    columns = {key: fill_tensors([cond[key] for cond in conds]) for key in conds[-1]}
    return [{key: column[i] for key, column in columns.items()} for i in range(len(conds))]


def cat_conditioning(conds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Conditioning of several batches in one, texts filled to one length."""
    filled = fill_conditioning(conds)
    return {key: torch.cat([cond[key] for cond in filled]) for key in filled[-1]}


def cast_conditioning(cond: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Embeddings in a dtype; masks and ids (integers, booleans) keep theirs: bfloat16 counts to 256 only."""
    return {key: v.to(dtype) if v.is_floating_point() else v for key, v in cond.items()}
