"""Estimates of x_0 during a rollout."""

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.state import State


class Estimates(Hook):
    """Stores the estimate of x_0 at every step of a rollout."""

    def on_init(self, policy, state):
        state.extras[self] = {}  # step -> (P, ...)
        super().on_init(policy, state)

    def after_step(self, policy, state):
        state.extras[self][state.i] = state.x0
        super().after_step(policy, state)

    def x_0(self, state: State) -> Tensor:
        """Estimates (P, T, ...) of a finished run."""
        return torch.stack(list(state.extras[self].values()), 1)
