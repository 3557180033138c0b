"""Building networks without weights."""

import torch
from torch import nn

from lit_align.weightless.ledger import fake_mode
from lit_align.weightless.stand_in import StandIn


def built(cls: type, config, **options) -> nn.Module:
    """A network of diffusers or transformers from its config, in eval mode, with tensors that have no values."""
    with fake_mode():
        if not hasattr(cls, "config_class"):  # diffusers
            return cls.from_config(config).eval()
        model = cls(cls.config_class.from_dict(config) if isinstance(config, dict) else config, **options)
        model.tie_weights()
        return model.eval()


def with_values(module: nn.Module) -> None:
    """Gives numbers to the tensors outside of stand-ins: the small layers between them, which are run as they are."""
    if isinstance(module, StandIn):
        return
    for name, p in module._parameters.items():
        if p is not None:
            module._parameters[name] = nn.Parameter(torch.randn(p.shape).mul(0.02).to(p.dtype), p.requires_grad)
    for name, b in module._buffers.items():
        if b is not None:
            module._buffers[name] = torch.ones(b.shape, dtype=b.dtype)
    for child in module.children():
        with_values(child)
