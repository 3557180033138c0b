"""Diffusion-NPO: a policy trained on swapped labels, used as what guidance leads away from."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference
from lit_align.diffusion.sampler import Hook, State


class NegativeBranch(Hook):
    """Guidance whose conditional prediction is the reference's and whose null prediction is the trained policy's."""

    def predict(self, policy, state, sampler):
        t, w = state.t.expand(len(state.x)), sampler.guidance_scale
        negative = policy.denoise(state.x, t, policy.null(len(state.x)))
        with policy.reference():
            positive = policy.denoise(state.x, t, state.cond)
        prediction = negative + w * (positive - negative)
        state.x0 = policy.process.to_x0(prediction, state.x, t)
        state.eps = policy.process.to_eps(prediction, state.x, t)


class DiffusionNPO(Preference):
    """Wang et al., ICLR 2025: Diffusion-DPO with winner and loser exchanged trains a *negative* policy; sampling takes
    (w + 1) eps_pos(x, c) - w eps_neg(x, null), here in diffusers' scale, with the reference as the positive policy.

    The implicit accuracy that is logged is that of the true labels: it falls.

    Args:
        beta: coefficient of D.
    """

    def __init__(self, beta: float = 500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(-self.beta * e.gap)

    def draw(self, batch: dict) -> State:
        if self.policy.in_reference:
            return super().draw(batch)
        return self.sampler(self.policy, batch["prompt"], seeds=batch["index"], hook=NegativeBranch())
