"""PSO on stored images, for few-step distilled models."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors


class OfflinePSO(OnlinePreference):
    """PSO's offline form (arXiv 2410.03190, section 3.2), for style and personalisation: target images (`win`) are
    preferred to the reference's samples by Diffusion-DPO's loss, at the times of the few-step sampler only (other times
    blur a distilled model).

    Args:
        beta: coefficient of D.
    """

    feedback = ("win",)
    refuses = {"timestep_sampling": "its times are those of the sampler"}

    def __init__(self, beta: float = 5.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def collect(self, batch: dict) -> dict:
        return batch | {"win_latents": self.latents(batch, "win"), "lose_latents": self.reference_latents(batch)}

    def noise(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        t, eps = super().noise(x_0, cond)
        grid = self.rollout.timesteps(self.policy).to(x_0.device)[:-1]
        t = grid[torch.randint(len(grid), (len(t) // 2,), device=x_0.device)]
        return torch.cat([t, t]), eps

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
