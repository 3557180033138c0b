"""Flow-DPO: Diffusion-DPO on velocity errors."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class FlowDPO(Preference):
    """Liu et al. 2025, arXiv 2501.13918, eq. 10: -log sigmoid(beta_t D), D the gap of velocity errors.

    The exact port of Diffusion-DPO has beta_t = beta (1 - t)^2; the paper found a constant beta_t better.

    Args:
        beta: coefficient of D (half of the paper's).
        time_dependent: use beta_t = beta (1 - t)^2 instead of a constant.
    """

    def __init__(self, beta: float = 250.0, time_dependent: bool = False, **kwargs):
        super().__init__(**kwargs)
        if self.policy.process.prediction != "flow":
            name = type(self.policy).__name__
            raise ValueError(f"FlowDPO needs a policy that predicts velocities; {name} does not: use DiffusionDPO.")
        self.beta, self.time_dependent = beta, time_dependent

    def loss(self, e: Errors) -> Tensor:
        beta = self.beta * self.policy.process.alpha(e.t).square() if self.time_dependent else self.beta
        return -F.logsigmoid(beta * e.gap)
