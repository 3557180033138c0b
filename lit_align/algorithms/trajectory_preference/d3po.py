"""D3PO: Diffusion-DPO's logistic loss on every denoising step of two of the policy's own trajectories."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch


def preferred(reward: Tensor) -> Tensor:
    """+1 and -1 for the better and the worse of successive samples, 0 and 0 for a tie: (N,) from rewards (N,)."""
    a, b = reward.view(-1, 2).unbind(1)
    return torch.stack([(a - b).sign(), (b - a).sign()], 1).flatten()


def clipped_dpo(step: StepBatch, beta: float, clip_range: float) -> Tensor:
    """-log sigmoid(beta log rho_a - beta log rho_b) of successive steps a and b (2M -> M), rho = clip(p_theta / p_ref,
    1 - e, 1 + e), and the advantages, +1 and -1, saying which is the better; log 2, without gradient, for a tie."""
    log_rho = step.log_ref_ratio.exp().clamp(1 - clip_range, 1 + clip_range).log()
    return -F.logsigmoid(beta * (step.advantage * log_rho).view(-1, 2).sum(1))


class D3PO(PolicyGradient):
    """Yang et al. 2023, arXiv 2311.13231, eq. 15: -log sigmoid(beta log rho_a - beta log rho_b) at each step of the
    better trajectory a and the worse one b of a prompt, rho = clip(p_theta / p_ref of the step, 1 - e, 1 + e).

    Both start from the same noise. A tie teaches nothing. The log-probability is a mean over the sample.

    Args:
        beta: coefficient of the log-ratios.
        clip_range: e.
        refresh_every: training steps (a round) after which the policy becomes the reference, as in the paper's runs
            with human feedback; 0: never.
    """

    uses_reference = True
    group_size = noise_group_size = 2

    def __init__(
        self,
        beta: float = 0.1,
        clip_range: float = 0.1,
        samples_per_prompt: int = 2,
        refresh_every: int = 0,
        **kwargs,
    ):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.beta, self.clip_range = beta, clip_range
        self.refresh_every, self.moves_reference = refresh_every, refresh_every > 0

    def training_step(self, batch: dict, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        if self.refresh_every and (self.batch_number + 1) % self.refresh_every == 0:
            self.policy.update_reference()

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return preferred(reward)

    def loss(self, step: StepBatch) -> Tensor:
        return clipped_dpo(step, self.beta, self.clip_range)
