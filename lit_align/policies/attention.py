"""The door to a denoiser's attention: what its layers compute can be read and replaced."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy


@dataclass
class Attention:
    """One evaluation of an attention layer: B samples, H heads, Q queries, K keys, D channels.

    `kind` is `self` (among image tokens), `cross` (of image tokens to text) or `joint` (among both, as in an MM-DiT);
    `place` is `down`, `mid` or `up` in a UNet, and `block` in a transformer. `grid` is the image tokens' (h, w), `cell`
    the side of one of them in latents.
    """

    name: str  # of the layer in the denoiser
    kind: str
    place: str
    layer: nn.Module
    grid: tuple[int, int]
    cell: int
    image: slice  # the image tokens among the queries
    text: slice  # the text tokens among the keys; empty in self-attention
    query: Tensor  # (B, H, Q, D)
    key: Tensor  # (B, H, K, D)
    value: Tensor  # (B, H, K, D)
    mask: Tensor | None = None  # added to the logits; or boolean, False where a key is not seen
    scale: float | None = None

    def logits(self) -> Tensor:
        """(B, H, Q, K), float32, the mask included."""
        scale = self.scale or 1 / math.sqrt(self.query.shape[-1])
        logits = scale * self.query.float() @ self.key.float().transpose(-1, -2)
        if self.mask is None:
            return logits
        hidden = self.mask.dtype == torch.bool
        return logits.masked_fill(~self.mask, -torch.inf) if hidden else logits + self.mask.float()

    def probabilities(self) -> Tensor:
        """(B, H, Q, K), float32."""
        return self.logits().softmax(-1)

    def words(self) -> Tensor:
        """How image tokens attend to text tokens (B, H, h w, L), float32. In joint attention what goes to the image is
        left out, and the rest normalised."""
        p = self.probabilities()[:, :, self.image, self.text]
        return p / p.sum(-1, keepdim=True) if self.kind == "joint" else p

    def patches(self) -> Tensor:
        """How image tokens attend to image tokens (B, H, h w, h w), float32. In joint attention what goes to the text
        is left out, and the rest normalised."""
        seen = self.image if self.kind == "joint" else slice(None)
        p = self.probabilities()[:, :, self.image, seen]
        return p / p.sum(-1, keepdim=True) if self.kind == "joint" else p

    def rows(self, rows: slice) -> "Attention":
        """The evaluation for some samples."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[rows]
        return replace(self, query=self.query[rows], key=self.key[rows], value=self.value[rows], mask=mask)

    def fused(self) -> Tensor:
        """What the layer gives (B, H, Q, D)."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, self.mask, scale=self.scale)

    def output(self, probabilities: Tensor, value: Tensor | None = None) -> Tensor:
        """What the layer gives with other probabilities, or other values: (B, H, Q, D)."""
        value = self.value if value is None else value
        return (probabilities @ value.float()).to(value.dtype)


Record = Callable[[Attention], Any]
Replace = Callable[[Attention], Tensor | None]


def matches(name: str, layers: list[str]) -> bool:
    """Whether a layer's name has one of `layers` in it, as whole parts: `mid`, `up_blocks.1`, `blocks.13`."""
    return any(re.search(rf"(^|[._]){re.escape(layer)}([._]|$)", name) for layer in layers)


def token_spans(tokenizer, prompt: str, length: int) -> list[tuple[int, int]]:
    """Characters (start, end) of the prompt that each of `length` tokens stands for; (0, 0) for special tokens."""
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    spans = tokenizer([prompt], return_offsets_mapping=True, **options)["offset_mapping"][0]
    return [tuple(span) for span in spans]


def refuse(policy: "Policy", who: str) -> None:
    """Raises ValueError, in the name of `who`, if this policy's attention cannot be read."""
    if policy.text_first is None and policy.denoiser_name == "transformer":
        raise ValueError(f"{who} reads attention, which is not known of {type(policy).__name__}: use another family.")
    if len(policy.latent_shape) != 3:
        raise ValueError(f"{who} reads attention over an image, and {type(policy).__name__} makes videos.")
    if policy.compiles:
        raise ValueError(f"{who} reads attention, which a compiled denoiser hides: set policy.compile to false.")
    if policy.denoiser.is_gradient_checkpointing:
        raise ValueError(
            f"{who} reads attention, which gradient checkpointing computes again: set policy.gradient_checkpointing to "
            "false."
        )


def cells(policy: "Policy", kind: str = "cross") -> set[int]:
    """Sides, in latents, of the image tokens of a denoiser's layers of a kind."""
    if policy.denoiser_name == "transformer":
        return {policy.patch}
    names = [name for name in policy.denoiser.attn_processors if ("attn2." in name) == (kind == "cross")]
    return {_depth(policy, name) for name in names}


def _depth(policy: "Policy", name: str) -> int:
    """Latents per image token of a UNet's layer, by its name: 2 to the number of downsamplings before it."""
    part, index = name.split(".")[:2]
    deepest = len(policy.denoiser.down_blocks) - 1
    if part == "mid_block":
        return 2**deepest
    return 2 ** (int(index) if part == "down_blocks" else deepest - int(index))


def _grid(size: tuple[int, int], cell: int) -> tuple[int, int]:
    return tuple(-(-side // cell) for side in size)


class _Door(TorchFunctionMode):
    """Sees every scaled dot product of the denoiser's attention layers."""

    def __init__(self, policy: "Policy", record: Record | None, replace: Replace | None):
        super().__init__()
        self.policy, self.record, self.replace = policy, record, replace
        self.kept: list = []
        self.layers: list[tuple[str, nn.Module, bool]] = []  # that are running: name, module, whether it is given text

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.layers:
            return func(*args, **kwargs)
        call = self.call(*args, **kwargs)
        if self.record and (value := self.record(call)) is not None:
            self.kept.append(value)
        out = self.replace(call) if self.replace else None
        return func(*args, **kwargs) if out is None else out

    def call(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_) -> Attention:
        """What a layer computes, from the arguments of F.scaled_dot_product_attention."""
        (name, layer, given_text), q, k = self.layers[-1], query.shape[2], key.shape[2]
        if self.policy.denoiser_name == "unet":
            place, cell, kind = name.split("_")[0], _depth(self.policy, name), "cross" if given_text else "self"
            image, text = slice(0, q), slice(0, k if given_text else 0)
        else:
            place, cell = "block", self.policy.patch
            n = math.prod(_grid(self.policy.latent_shape[-2:], cell))
            kind = "joint" if q > n else "self" if k == n else "cross"
            first = self.policy.text_first and kind == "joint"
            image = slice(q - n, q) if first else slice(0, n)
            text = {"self": slice(0, 0), "cross": slice(0, k)}.get(kind, slice(0, k - n) if first else slice(n, k))
        grid = _grid(self.policy.latent_shape[-2:], cell)
        return Attention(name, kind, place, layer, grid, cell, image, text, query, key, value, attn_mask, scale)

    def watch(self) -> list:
        """Hooks on the attention layers, which note the one that is running."""
        handles = []
        for name in self.policy.denoiser.attn_processors:
            name = name.removesuffix(".processor")
            layer = self.policy.denoiser.get_submodule(name)

            def enter(module, args, kwargs, name=name):
                text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
                self.layers.append((name, module, text is not None))

            handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(layer.register_forward_hook(lambda *_: self.layers.pop() and None))
        return handles


@contextmanager
def attention(policy: "Policy", record: Record | None = None, replace: Replace | None = None) -> Iterator[list]:
    """Inside, every evaluation of an attention layer is shown as an `Attention`, in the order of the layers. Yields the
    list of what `record` returns, None left out, with its gradient; what `replace` returns, if not None, takes the
    place of the layer's output (B, H, Q, D). The denoiser's processors stay what they are, and latents must have the
    policy's own size. With guidance a forward holds the null samples first, then the conditional ones.
    """
    refuse(policy, "policy.attention")
    door = _Door(policy, record, replace)
    handles = door.watch()
    try:
        with door:
            yield door.kept
    finally:
        for handle in handles:
            handle.remove()
