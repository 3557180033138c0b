"""CUDA's rules of autocast on tensors that are said to lie on a CPU."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

FLOAT32 = (nn.GroupNorm, nn.LayerNorm, nn.Softmax)  # which CUDA's autocast computes in float32, and the CPU's does not


@contextmanager
def like_cuda(network: nn.Module):
    """Inside, where autocast is on for the CPU, the network's normalisations take and give float32, as PyTorch's page
    "Automatic Mixed Precision package" says of CUDA."""
    layers = [layer for layer in network.modules() if isinstance(layer, FLOAT32)]
    hooks = [layer.register_forward_pre_hook(to_float32) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def to_float32(layer: nn.Module, args: tuple) -> tuple | None:
    if torch.is_autocast_enabled("cpu"):
        return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
