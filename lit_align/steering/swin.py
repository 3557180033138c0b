"""A Swin transformer (Liu et al. 2021, arXiv 2103.14030) whose tensors have the names of timm 0.9 and later."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention within windows, with a learnt bias for each relative position."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        places = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)  # (2, N)
        apart = places[:, :, None] - places[:, None] + window - 1  # (2, N, N)
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B W, N, C), the W windows of an image together; mask (W, N, N), True where two tokens may not meet."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B W, heads, N, C / heads)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # (heads, N, N)
        if mask is not None:
            apart = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask, -100.0)
            bias = (bias + apart[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, bias.expand(len(x), *bias.shape[-3:]))
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention in windows, which every other block shifts by half a window, and an MLP."""

    def __init__(self, width: int, heads: int, window: int, shift: int, size: int):
        super().__init__()
        self.window, self.shift = window, shift if size > window else 0
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, heads, window), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        region = torch.zeros(size, size)
        for i, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None)) if self.shift else ()):
            for j, columns in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                region[rows, columns] = 3 * i + j
        flat = self.windows(region[None, ..., None]).squeeze(-1)  # (W, N)
        self.register_buffer("mask", flat[:, None] != flat[:, :, None] if self.shift else None, persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        """(B W, N, C) from (B, H, W, C)."""
        w = self.window
        return x.unflatten(1, (-1, w)).unflatten(3, (-1, w)).transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, w, window = x.shape[1], x.shape[2], self.window
        y = self.norm1(x)
        y = y.roll((-self.shift, -self.shift), (1, 2)) if self.shift else y
        y = self.attn(self.windows(y), self.mask)
        y = y.view(len(x), h // window, w // window, window, window, -1).transpose(2, 3).reshape(x.shape)
        x = x + (y.roll((self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Downsample(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """Features (B, 7, 7, 8 width) of images (B, 3, 224, 224); swin_tiny_patch4_window7_224 by default.

    Args:
        width: of the first stage.
        depths: blocks of the stages.
        heads: of their attention.
    """

    def __init__(
        self, width: int = 96, depths: tuple[int, ...] = (2, 2, 6, 2), heads: tuple[int, ...] = (3, 6, 12, 24)
    ):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj, self.patch_embed.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.layers, window = nn.ModuleList(), 7
        for i, (depth, n) in enumerate(zip(depths, heads, strict=True)):
            layer, size = nn.Module(), 56 // 2**i
            layer.downsample = Downsample(width * 2 ** (i - 1)) if i else nn.Identity()
            shifts = [0 if k % 2 == 0 else window // 2 for k in range(depth)]
            layer.blocks = nn.ModuleList(Block(width * 2**i, n, window, shift, size) for shift in shifts)
            self.layers.append(layer)
        self.norm = nn.LayerNorm(width * 2 ** (len(depths) - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))
        for layer in self.layers:
            x = layer.downsample(x)
            for block in layer.blocks:
                x = block(x)
        return self.norm(x)
