"""InPO: Diffusion-DPO at noisy latents from DDIM inversion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference
from lit_align.diffusion.transition import DDIM


class InPO(Preference):
    """Lu et al. 2025, arXiv 2503.18454 (DDIM-InPO): Diffusion-DPO with x_t from DDIM inversion of x_0 instead of
    forward noising.

    Inversion uses the current policy, without gradient or guidance, on a grid of `inversion_steps`, up to a grid time
    drawn for each pair. As released, a step from time s up to time t tells the network t. The target is the noise that
    gives this x_t: eps = (x_t - alpha x_0) / sigma. (The official code draws any time, and inverts to the grid time
    below it; here both are the same time.)

    Args:
        beta: coefficient of D.
        inversion_steps: points of the grid.
        eta: fresh noise after each step up to t, in units of the noise that DDIM with eta 1 adds in its step down to t,
            in [0, 1]. The step up to the noisiest time adds none.
        refinements: predictions of a step beyond the first, each at the end of the step as it is so far; the step takes
            the mean of all (ReNoise, arXiv 2403.14602).
    """

    refuses = {"timestep_sampling": "its times are those of the inversion's grid"}

    def __init__(
        self, beta: float = 2500.0, inversion_steps: int = 10, eta: float = 0.1, refinements: int = 0, **kwargs
    ):
        super().__init__(**kwargs)
        self.beta, self.inversion_steps, self.eta, self.refinements = beta, inversion_steps, eta, refinements

    @torch.no_grad()
    def noise(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x_t, t, _, _ = self.inverted(x_0, cond)
        alpha, sigma = self.policy.process.coefficients(t, x_0)
        return t, (x_t - alpha * x_0) / sigma

    def inverted(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t (2B, ...) of images x_0 (2B, ...), winners first, at times t (2B,), one of the grid for each pair; and
        the x_0 and eps of which the last step up made x_t, without fresh noise."""
        grid = self.policy.process.timesteps(self.inversion_steps).flip(0).to(x_0.device)  # clean end first
        stop = torch.randint(1, len(grid), (len(x_0) // 2,), device=x_0.device).repeat(2)
        x_t, clean, eps = x_0.clone(), torch.zeros_like(x_0), torch.zeros_like(x_0)
        for i in range(1, int(stop.max()) + 1):
            rows = (stop >= i).nonzero().flatten()
            own, t = {k: v[rows] for k, v in cond.items()}, grid[i].expand(len(rows))
            clean[rows], eps[rows] = self.inversion_step(x_t[rows], grid[i - 1], grid[i], own)
            x_t[rows] = self.policy.process.add_noise(clean[rows], eps[rows], t)
            if i + 1 < len(grid):
                x_t[rows] += self.fresh_noise(x_t[rows], grid[i], grid[i + 1])
        return x_t, grid[stop], clean, eps

    def inversion_step(self, x_s: Tensor, s: Tensor, t: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The x_0 and eps (N, ...) with which x_s goes up to the noisier time t, both times ()."""
        process, s, t = self.policy.process, s.expand(len(x_s)), t.expand(len(x_s))
        a_s, s_s = process.coefficients(s, x_s)
        x, level, predictions = x_s, s, []
        for _ in range(1 + self.refinements):
            predictions.append(process.to_eps(self.policy.denoise(x, t, cond), x, level))
            eps = torch.stack(predictions).mean(0)
            clean, level = (x_s - s_s * eps) / a_s, t
            x = process.add_noise(clean, eps, t)
        return clean, eps

    def fresh_noise(self, x_t: Tensor, t: Tensor, above: Tensor) -> Tensor:
        """Noise in the shape of x_t (N, ...) at time t; `above` is the grid's next noisier time."""
        above, t = above.expand(len(x_t)), t.expand(len(x_t))
        return DDIM(self.eta)(self.policy.process, x_t, x_t, x_t, above, t).std * torch.randn_like(x_t)

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
