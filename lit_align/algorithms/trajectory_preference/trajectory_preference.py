"""The trajectory-preference family: one of two trajectories of a prompt, or of two steps from one x_t, is preferred."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch


def preferred(reward: Tensor) -> Tensor:
    """+1 for the better and -1 for the worse of two successive samples, 0 for ties: (N,) from rewards (N,)."""
    a, b = reward.view(-1, 2).unbind(1)
    return torch.stack([(a - b).sign(), (b - a).sign()], 1).flatten()


class TrajectoryPreference(PolicyGradient):
    """Base of the methods that apply Diffusion-DPO's logistic loss to single denoising steps,

        -log sigmoid(beta log rho_a - beta log rho_b),    rho = clip(p_theta / p_ref of the step, 1 - e, 1 + e),

    a the better (advantage +1) and b the worse (-1) of two successive steps. A tie (0 and 0) gives log 2 and no
    gradient. Log-probabilities are means over the sample.

    Args:
        beta: coefficient of the log-ratios.
        clip_range: e, half-width of the ratio's clipping interval.
    """

    uses_reference, uses_advantage = True, False
    group_size = 2

    def __init__(self, beta: float, clip_range: float = 0.1, samples_per_prompt: int = 2, **kwargs):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.beta, self.clip_range = beta, clip_range

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return preferred(reward)

    def loss(self, step: StepBatch) -> Tensor:
        log_rho = step.log_ref_ratio.exp().clamp(1 - self.clip_range, 1 + self.clip_range).log()
        return -F.logsigmoid(self.beta * (step.advantage * log_rho).view(-1, 2).sum(1))
