"""Clipping of gradients, and PPO's clipping of likelihood ratios."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: list, max_norm: float | None) -> Tensor:
    """Clips gradients to a total norm (None: no clipping) and returns their norm before clipping, ()."""
    if max_norm:
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    else:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - e, 1 + e)) (PPO, arXiv 1707.06347, eq. 7), (M,)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))
