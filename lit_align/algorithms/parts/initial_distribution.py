"""A learnt distribution of the initial noise."""

import math

import torch
from torch import Tensor, nn

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.state import derived_seed, randn_like
from lit_align.policies.policy import Policy


class InitialDistribution(nn.Module, Hook):
    """ELEGANT's nu(x_T | c) (arXiv 2402.15194): the end of a Brownian motion from 0 with learnt drift q, in n steps

        y_{k+1} = y_k + q(y_k, c, k) / n + xi_k / sqrt(n).

    q starts at 0, so nu starts at N(0, I): the increments are drawn given their sum, the initial noise x. As a Hook it
    replaces the rollout's initial noise.

    Args:
        policy: gives the latent shape and the caption embeddings.
        steps: n.
        width: of q's hidden layers; q sees the flattened latent, the caption's mean embedding and the time.
    """

    def __init__(self, policy: Policy, steps: int = 8, width: int = 256):
        super().__init__()
        self.steps, size = steps, math.prod(policy.latent_shape)
        text = policy.summary(policy.condition([""])).shape[-1]
        last = nn.Linear(width, size)
        self.q = nn.Sequential(nn.Linear(size + text + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, text: Tensor, generators: list | None = None) -> tuple[Tensor, Tensor]:
        """x_T (B, ...) from standard noise x (B, ...) and caption vectors (B, D); and the KL of its path to that of
        N(0, I), sum_k |q|^2 / 2n: (B,), in nats."""
        n, context = self.steps, text.float()
        z = torch.stack([randn_like(x, generators) for _ in range(n)])
        xi = z - z.mean(0) + x / math.sqrt(n)  # standard normal, with sum xi / sqrt(n) = x
        y, kl = torch.zeros_like(x), torch.zeros(len(x), device=x.device)
        for k in range(n):
            time = torch.full((len(x), 1), k / n, device=x.device)
            q = self.q(torch.cat([y.flatten(1), context, time], 1)).float()
            y = y + q.view_as(x) / n + xi[k] / math.sqrt(n)
            kl = kl + q.square().sum(1) / (2 * n)
        return y, kl

    def on_init(self, policy, state):
        streams = state.generators  # separate streams: the steps draw the same noise as without this hook
        streams = streams and [torch.Generator().manual_seed(derived_seed(g.initial_seed(), 1)) for g in streams]
        state.x, _ = self(state.x, policy.summary(state.cond), streams)
        super().on_init(policy, state)
