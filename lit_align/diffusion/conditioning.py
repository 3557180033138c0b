"""A denoiser's conditioning: a dict of tensors (B, ...), of which some differ in length from prompt to prompt."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def cat_tensors(values: list[Tensor]) -> Tensor:
    """Concatenates along the batch; where other axes differ, the shorter tensor is filled with zeros at its end."""
    longest = [max(sizes) for sizes in zip(*(v.shape[1:] for v in values), strict=True)]
    filled = []
    for v in values:
        missing = [n - size for n, size in zip(longest, v.shape[1:])]
        filled.append(pad(v, [k for m in reversed(missing) for k in (0, m)]) if any(missing) else v)
    return torch.cat(filled)


def cat_conditioning(conds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Conditioning of several batches in one, with the keys of the last. Texts of different length are filled with
    zeros, their masks too."""
    return {key: cat_tensors([cond[key] for cond in conds]) for key in conds[-1]}


def cast_conditioning(cond: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Embeddings in a dtype; masks and ids (integers, booleans) keep theirs: bfloat16 counts to 256 only."""
    return {key: v.to(dtype) if v.is_floating_point() else v for key, v in cond.items()}
