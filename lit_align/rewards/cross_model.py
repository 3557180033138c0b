"""MPS's fusion of image and text tokens. Tensors have the published names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.rewards.weights import fill


class Norm(nn.Module):
    """Layer norm whose bias is no parameter."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return F.silu(gate) * value


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-query attention: queries (B, h, n, d) share one key and value (B, m, d). Returns (B, n, h d)."""
    k, v = (x[:, None].expand(-1, q.shape[1], -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def split_heads(q: Tensor, width: int) -> Tensor:
    """(B, n, h width) -> (B, h, n, width)."""
    return q.unflatten(-1, (-1, width)).transpose(1, 2)


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary position embedding of x (..., n, d), in which the second half of d pairs with the first."""
    angle = torch.outer(torch.arange(x.shape[-2], device=x.device).to(frequencies), frequencies).repeat(1, 2)
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


class CrossAttention(nn.Module):
    """Image tokens attend to the prompt's tokens, with a feed-forward layer in parallel."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.norm = Norm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), SwiGLU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        k, v = self.to_kv(text).chunk(2, -1)
        return self.to_out(attend(split_heads(self.to_q(x), k.shape[-1]), k, v, mask)) + self.ff(x)


class SelfAttention(nn.Module):
    """Image tokens attend to each other, with a feed-forward layer in parallel, out of one projection."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.norm = Norm(width)
        self.sizes = (heads * head_width, head_width, head_width, 8 * width)
        self.rotary_emb = nn.Module()
        self.rotary_emb.register_buffer("inv_freq", 10_000 ** (-torch.arange(0, head_width, 2) / head_width))
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.sizes, -1)
        q = split_heads(q, k.shape[-1])
        q, k = (rotate(x, self.rotary_emb.inv_freq) for x in (q, k))
        return self.attn_out(attend(q, k, v)) + self.ff_out(ff)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *args) -> Tensor:
        return x + self.fn(x, *args)


class CrossModel(nn.Module):
    """Layers of cross- and self-attention: image tokens (B, n, D), text tokens (B, m, D) and a mask, (B, 1, 1, m), of
    those that are attended to -> image tokens (B, n, D).

    Args:
        width: of tokens.
        depth: number of layers.
        heads, head_width: number of queries' heads and their width.
    """

    def __init__(self, width: int, depth: int, heads: int, head_width: int):
        super().__init__()
        size = (width, heads, head_width)
        self.layers = nn.ModuleList(
            nn.ModuleList([Residual(CrossAttention(*size)), Residual(SelfAttention(*size))]) for _ in range(depth)
        )

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        for cross, own in self.layers:
            image = own(cross(image, text, mask))
        return image

    @classmethod
    def load(cls, state: dict[str, Tensor], file: str) -> "CrossModel":
        query, pair = (state[f"layers.0.0.fn.{name}.weight"] for name in ("to_q", "to_kv"))
        head_width, depth = len(pair) // 2, len({name.split(".")[1] for name in state})
        model = cls(query.shape[1], depth, len(query) // head_width, head_width)
        fill(model, state, file)
        return model
