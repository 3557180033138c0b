"""The trajectory-preference family: of two trajectories of a prompt, or of two steps from one x_t, one is preferred."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch


def preferred(reward: Tensor) -> Tensor:
    """+1 and -1 for the better and the worse of successive samples, 0 and 0 for a tie: (N,) from rewards (N,)."""
    a, b = reward.view(-1, 2).unbind(1)
    return torch.stack([(a - b).sign(), (b - a).sign()], 1).flatten()


class TrajectoryPreference(PolicyGradient):
    """Base of the methods that take Diffusion-DPO's logistic loss on single denoising steps,

        -log sigmoid(beta log rho_a - beta log rho_b),    rho = clip(p_theta / p_ref of the step, 1 - e, 1 + e),

    a the better of two successive steps and b the worse, as their advantages +1 and -1 say. A tie (0 and 0) gives
    log 2, without gradient. The log-probability is a mean over the sample's axes.

    Args:
        beta: coefficient of the log-ratios.
        clip_range: e, half the width of the ratio's band.
    """

    uses_reference = True
    group_size = 2

    def __init__(self, beta: float, clip_range: float = 0.1, samples_per_prompt: int = 2, **kwargs):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.beta, self.clip_range = beta, clip_range

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return preferred(reward)

    def loss(self, step: StepBatch) -> Tensor:
        log_rho = step.log_ref_ratio.exp().clamp(1 - self.clip_range, 1 + self.clip_range).log()
        return -F.logsigmoid(self.beta * (step.advantage * log_rho).view(-1, 2).sum(1))
