"""The deterministic step x_t -> x_s as a linear map, and its exact inverse."""

import torch
from torch import Tensor

from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler


def step_coefficients(process: Process, t: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of the step x_s = A x_t + B prediction (DDIM with eta 0; for a flow, Euler's), shaped to multiply x
    (B, ...); times (B,). Raises ValueError if the step forgets x_t (A = 0), so that it has no inverse."""
    one = torch.ones(len(x), *[1] * (x.ndim - 1), device=x.device)
    a_s, s_s = process.coefficients(s, one)
    step = lambda x_t, prediction: a_s * process.to_x0(prediction, x_t, t) + s_s * process.to_eps(prediction, x_t, t)
    a, b = step(one, 0 * one), step(0 * one, one)
    if not a.all():
        raise ValueError(
            "this model predicts x_0, and its last step keeps nothing of x_t: it cannot be inverted; use a sampler "
            "whose scheduler has set_alpha_to_one: false."
        )
    return a, b


def step(process: Process, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s from x_t (B, ...) and the network's prediction."""
    a, b = step_coefficients(process, t, s, x_t)
    return a * x_t + b * prediction


def invert(process: Process, x_s: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The x_t (B, ...) that `step` with this prediction leads to x_s from."""
    a, b = step_coefficients(process, t, s, x_s)
    return (x_s - b * prediction) / a


def ddim_inversion(sampler: Sampler, policy, x_0: Tensor, cond: dict, iterations: int = 1) -> Tensor:
    """The noise x_T (B, ...) that the sampler's deterministic steps lead to x_0 from: DDIM inversion (arXiv 2105.05233,
    appendix F), with the sampler's guidance and steering.

    The prediction that a step is inverted with is taken at x_s and the step's own time t. With more `iterations` it is
    taken again at the x_t so found: a fixed point is the exact inverse (AIDI, arXiv 2309.04907).
    """
    grid, x = sampler.timesteps(policy).to(x_0.device), x_0.float()
    for t, s in zip(grid[:-1].flip(0), grid[1:].flip(0)):
        t, s, x_s = t.expand(len(x)), s.expand(len(x)), x
        for _ in range(iterations):
            _, clean, eps = sampler.gaussian(policy, x, t, s, cond)
            x = invert(policy.process, x_s, policy.process.target(clean, eps, t), t, s)
    return x
