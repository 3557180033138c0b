"""PSO: preferences for few-step distilled models, on the times of their own sampler."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors
from lit_align.algorithms.trajectory_preference.d3po import clipped_dpo, preferred


class PSO(PolicyGradient):
    """Miao et al. 2024, arXiv 2410.03190, eq. 9, online: D3PO's loss with a large beta on the few steps of a
    distilled model, without guidance, from two independent starts; the last, deterministic step is left out.

    Args:
        beta: coefficient of the log-ratios.
        clip_range: half the width of the ratio's band.
    """

    uses_reference = True
    group_size = 2

    def __init__(self, beta: float = 50.0, clip_range: float = 0.1, samples_per_prompt: int = 2, **kwargs):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.beta, self.clip_range = beta, clip_range

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return preferred(reward)

    def loss(self, step: StepBatch) -> Tensor:
        return clipped_dpo(step, self.beta, self.clip_range)


class OfflinePSO(OnlinePreference):
    """PSO's offline form (arXiv 2410.03190, section 3.2), for style and personalisation: target images (`win`) against
    the reference's own samples, by Diffusion-DPO's loss at the times of the few-step sampler and no others (elsewhere
    it blurs a distilled model).

    Args:
        beta: coefficient of D.
    """

    feedback = ("win",)

    def __init__(self, beta: float = 5.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def collect(self, batch: dict) -> dict:
        with self.policy.reference():
            lose = self.draw_latents(batch["prompt"])
        return batch | {"win_latents": self.latents(batch, "win"), "lose_latents": lose}

    def noise(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        t, eps = super().noise(x_0, cond)
        grid = self.rollout.timesteps(self.policy).to(x_0.device)[:-1]
        t = grid[torch.randint(len(grid), (len(t) // 2,), device=x_0.device)]
        return torch.cat([t, t]), eps

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
