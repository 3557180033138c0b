"""PPO's clipped surrogate."""

import torch
from torch import Tensor


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - e, 1 + e)) (PPO, arXiv 1707.06347, eq. 7), (M,)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))
