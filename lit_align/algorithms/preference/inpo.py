"""InPO: Diffusion-DPO at noisy latents from DDIM inversion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class InPO(Preference):
    """Lu et al. 2025, arXiv 2503.18454 (DDIM-InPO): Diffusion-DPO with x_t from DDIM inversion of x_0 instead of
    forward noising.

    Inversion uses the current policy, without gradient or guidance, on a grid of `inversion_steps`, up to a grid time
    drawn for each pair. The target is the noise that gives this x_t: eps = (x_t - alpha x_0) / sigma. (The official
    code inverts to the grid time below the t that it passes to the network; here both are the same time.)

    Args:
        beta: coefficient of D.
        inversion_steps: points of the grid.
        eta: fraction of fresh noise in each inversion step, in [0, 1].
        refinements: fixed-point corrections per step (ReNoise, arXiv 2403.14602).
    """

    def __init__(
        self, beta: float = 2500.0, inversion_steps: int = 10, eta: float = 0.1, refinements: int = 0, **kwargs
    ):
        super().__init__(**kwargs)
        self.beta, self.inversion_steps, self.eta, self.refinements = beta, inversion_steps, eta, refinements

    @torch.no_grad()
    def noise(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        grid = self.policy.process.timesteps(self.inversion_steps).flip(0).to(x_0.device)  # clean end first
        stop = torch.randint(1, len(grid), (len(x_0) // 2,), device=x_0.device).repeat(2)
        x_t = x_0.clone()
        for i in range(1, int(stop.max()) + 1):
            rows = (stop >= i).nonzero().flatten()
            x_t[rows] = self.inversion_step(x_t[rows], grid[i - 1], grid[i], {k: v[rows] for k, v in cond.items()})
        t = grid[stop]
        alpha, sigma = self.policy.process.coefficients(t, x_0)
        return t, (x_t - alpha * x_0) / sigma

    def inversion_step(self, x_s: Tensor, s: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """One step from x_s (N, ...) up to the noisier time t."""
        process, s, t = self.policy.process, s.expand(len(x_s)), t.expand(len(x_s))
        fresh, kept = self.eta, (1 - self.eta**2) ** 0.5
        (a_s, s_s), (a_t, s_t) = process.coefficients(s, x_s), process.coefficients(t, x_s)
        x, time, z = x_s, s.clamp(min=0), torch.randn_like(x_s)  # networks take no time below 0
        for _ in range(1 + self.refinements):
            eps = process.to_eps(self.policy.denoise(x, time, cond), x, time)
            x = a_t * (x_s - s_s * eps) / a_s + s_t * (kept * eps + fresh * z)
            time = t
        return x

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
