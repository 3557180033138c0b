"""The tensors of a module that are trained, whole or as shards of them."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Name -> data of every parameter that requires a gradient."""
    return {name: p.data for name, p in module.named_parameters() if p.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU; a sharded tensor is gathered (all ranks must call)."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor on the device, and with the sharding, of another."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device, copy=True)


@torch.no_grad()
def write(values: dict[str, Tensor], module: nn.Module) -> None:
    """Copies values into the trained tensors of their names."""
    for name, target in trainable(module).items():
        target.copy_(
            laid_out_like(values[name], target)
            if isinstance(target, DTensor) and not isinstance(values[name], DTensor)
            else values[name]
        )
