"""Consistency of a policy's estimates of x_0 along one path."""

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.policy import Policy


def consistency_loss(policy: Policy, sampler: Sampler, x_0: Tensor, cond: dict, grid: int = 50) -> Tensor:
    """Latent consistency distillation (LCM, arXiv 2310.04378) with the reference as teacher, (B,) from latents x_0 (B,
    ...): squared distance between the policy's x_0-hat at x_t and, without gradient, at x_s, the result of the
    reference's deterministic step from x_t; t and s are neighbours on the grid."""
    process = policy.process
    times = process.timesteps(grid)
    i = torch.randint(grid, (len(x_0),), device=times.device)
    t, s = times[i], times[i + 1]
    x_t = process.add_noise(x_0, torch.randn_like(x_0), t)
    alpha, sigma = process.coefficients(s, x_0)
    with torch.no_grad():
        with policy.reference():
            z, eps = sampler.predict(policy, x_t, t, cond)
        target, _ = sampler.predict(policy, alpha * z + sigma * eps, s, cond)
    return policy.error(sampler.predict(policy, x_t, t, cond)[0], target)
