"""Diffusion-NPO: a policy trained on swapped labels, used as the negative branch of guidance."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.steering.negative_branch import NegativeBranch


class DiffusionNPO(Preference):
    """Wang et al., ICLR 2025 (arXiv 2505.11245): Diffusion-DPO with winner and loser swapped trains a *negative*
    policy. Sampling takes (w + 1) eps_pos(x, c) - w eps_neg(x, null), here in diffusers' scale, with the reference as
    the positive policy.

    The logged implicit accuracy uses the true labels, so it falls.

    Args:
        beta: coefficient of D.
    """

    refuses = {"safeguard": "it trains losers as winners"}

    def __init__(self, beta: float = 500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(-self.beta * e.gap)

    def draw(self, batch: dict, sampler: Sampler | None = None) -> State:
        sampler, hooks = sampler or self.sampler, () if self.policy.in_reference else (NegativeBranch(),)
        return sampler(self.policy, batch["prompt"], columns=batch.get("columns"), seeds=batch["seed"], hooks=hooks)
