"""DGPO: direct preference optimization of the group of a prompt's better samples over its worse ones."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.forward_process.forward_process import ForwardProcess, NoisedBatch


class DGPO(ForwardProcess):
    """Luo et al. 2025, arXiv 2510.08425, as released. With l = mean |v - target|^2 and the mean over a prompt's K
    samples,

        L = -1/beta log sigmoid(-beta mean_i A_i (l_theta,i - l_ref,i)) + kl_weight mean |v_theta - v_ref|^2:

    the gradient of A l_theta, times a weight in [0, 1] that the group shares. The advantages of a group add up to 0, so
    its partition function cancels. A group's samples share t and eps. A sample whose exp(l_old - l_theta) has left 1 +-
    e in the direction of its advantage gives no gradient. Each group draws its times, and eps at each time; the
    released code draws times once for all groups and one eps per group.

    Args:
        beta: 10 to 100, in units of 1 / (advantage x error).
        kl_weight: of the distance from the reference.
        clip_range: e; 1e-5 to 1e-4 if rollouts have no guidance.
        reference_guidance: guidance scale of the reference, in both places; released: 4.5 if rollouts have none.
        trained_steps: times per sample.
        fraction: of the rollout's steps, from noise, from which these times are drawn.
        switch: optimizer steps after which the old policy samples; before, the current policy does.
    """

    grouped, uses_reference = True, True

    def __init__(
        self,
        beta: float = 100.0,
        kl_weight: float = 1e-3,
        clip_range: float = 1e-3,
        reference_guidance: float = 1.0,
        trained_steps: int = 4,
        fraction: float = 0.7,
        switch: int = 200,
        decay: tuple[float, float, float, int] = (0.0, 0.001, 0.3, 0),
        **kwargs,
    ):
        super().__init__(fraction=fraction, decay=decay, **kwargs)
        self.beta, self.kl_weight, self.clip_range = beta, kl_weight, clip_range
        self.reference_guidance, self.trained_steps, self.switch = reference_guidance, trained_steps, switch

    def sampling_policy(self) -> AbstractContextManager:
        return self.policy.old() if self.global_step > self.switch else nullcontext()

    def times(self, n: int) -> Tensor:
        grid = self.rollout.timesteps(self.policy)[:-1]
        early = grid[: max(1, round(self.fraction * len(grid)))]
        order = torch.rand(n // self.group_size, len(early), device=grid.device).argsort(1)
        return early[order[:, : self.trained_steps]].repeat_interleave(self.group_size, 0)

    def noise(self, x_0: Tensor) -> Tensor:
        return torch.randn_like(x_0[:: self.group_size]).repeat_interleave(self.group_size, 0)

    def loss(self, b: NoisedBatch) -> Tensor:
        l_theta, l_ref, l_old = (self.policy.error(x, b.target) for x in (b.pred, b.ref, b.old))
        rho, e = (l_old - l_theta).detach().exp(), self.clip_range
        clipped = torch.where(b.advantage > 0, rho > 1 + e, rho < 1 - e)
        self.log_mean("train/clip_fraction", clipped.float().mean(), len(rho))
        l_theta = torch.where(clipped, l_theta.detach(), l_theta)
        gap = (b.advantage * (l_theta - l_ref)).view(-1, self.group_size).mean(1)
        kl = self.policy.error(b.pred, b.ref).view(-1, self.group_size).mean(1)
        return F.softplus(self.beta * gap) / self.beta + self.kl_weight * kl
