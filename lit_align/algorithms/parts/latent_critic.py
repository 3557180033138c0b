"""A value function of noisy latents."""

import math

import torch
from torch import Tensor, nn

from lit_align.policies.policy import Policy


class Value(nn.Module):
    """V(x_t, c, t): three layers on the flattened latent and the caption's mean embedding, each scaled by a learnt
    vector per time (DPOK, arXiv 2305.16381, appendix).

    Args:
        policy: gives the latent shape and the caption embeddings.
        times: the sampling grid.
        width: of the hidden layers.
    """

    def __init__(self, policy: Policy, times: Tensor, width: int = 256):
        super().__init__()
        text = policy.summary(policy.condition([""])).shape[-1]
        self.register_buffer("times", times.float(), persistent=False)
        sizes = [math.prod(policy.latent_shape) + text, width, width, width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.scales = nn.ModuleList(nn.Embedding(len(times), width) for _ in sizes[1:])
        for scale in self.scales:
            nn.init.ones_(scale.weight)
        self.head = nn.Linear(width, 1)

    def forward(self, x_t: Tensor, text: Tensor, t: Tensor) -> Tensor:
        """(B,) from latents (B, ...), caption vectors (B, D) and times (B,) of the grid."""
        index = (self.times - t.float()[:, None]).abs().argmin(1)
        h = torch.cat([x_t.float().flatten(1), text.float()], 1)
        for layer, scale in zip(self.layers, self.scales):
            h = torch.relu(layer(h) * scale(index))
        return self.head(h).flatten()


def param_groups(policy: Policy, value: Value, value_lr: float) -> list[dict]:
    """Parameter groups of an optimizer that trains policy and V, V with its own learning rate."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    return [{"params": trained}, {"params": list(value.parameters()), "lr": value_lr}]
