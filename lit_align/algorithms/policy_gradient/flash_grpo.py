"""Flash-GRPO: one noisy step in a rollout, with the same gradient in the network's output whichever step it is."""

import torch
from torch import Tensor

from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch


class FlashGRPO(FlowGRPO):
    """He et al. 2026, arXiv 2605.15980, with the released code's weights: Flow-GRPO with a window of one step, which
    all samples of a prompt share, so advantages do not mix the difficulty of steps; and a step's surrogate divided by

        lambda = |d mu / d v| / std,

    by which the gradient of log p in the network's prediction v grows: under FlowSDE sqrt(dt) / s + s sqrt(dt) (1 - t)
    / 2 t, s the noise level. 1 / lambda has mean 1 over the steps of `window_range`.

    (Released: the step is drawn for each prompt; here for each rollout of a rank.)
    """

    def __init__(self, window: int = 1, beta: float = 0.0, **kwargs):
        super().__init__(window=window, beta=beta, **kwargs)

    def sensitivity(self, t: Tensor, s: Tensor) -> Tensor:
        """lambda (M,) of steps from times t to s."""
        process, zero = self.policy.process, torch.zeros(len(t), 1, device=t.device)
        moved, still = (
            self.rollout.transition.sde(process, zero, process.to_x0(v, zero, t), process.to_eps(v, zero, t), t, s)
            for v in (zero + 1, zero)
        )
        return ((moved.mean - still.mean).abs() / still.std).flatten()

    def surrogate(self, step: StepBatch) -> Tensor:
        first, end = self.window_range
        grid = self.rollout.timesteps(self.policy).to(step.t.device)[first : end + 1]
        scale = 1 / (1 / self.sensitivity(grid[:-1], grid[1:])).mean()
        return super().surrogate(step) * scale / self.sensitivity(step.t, step.s)
