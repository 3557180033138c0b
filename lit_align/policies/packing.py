"""2 x 2 squares of latents as tokens, as FLUX's and its kin's denoisers want them."""

import torch
from torch import Tensor


def pack(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w / 4, 4 C); channels in the order (C, row, column)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """(B, h w / 4, 4 C) -> (B, C, h, w)."""
    b, _, c = tokens.shape
    return tokens.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)


def grid_ids(h: int, w: int, axes: int, device: torch.device) -> Tensor:
    """Places of h x w tokens (h w, axes), float32: row and column on axes 1 and 2, zeros elsewhere."""
    ids = torch.zeros(h, w, axes, device=device)
    ids[..., 1] = torch.arange(h, device=device)[:, None]
    ids[..., 2] = torch.arange(w, device=device)
    return ids.flatten(0, 1)
