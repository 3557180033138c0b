"""Neighbouring estimates of x_0 along one path."""


import pytest
import torch

from lit_align.algorithms.parts.consistency import consistency_loss
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_the_anchor_is_the_consistency_of_neighbouring_estimates(family):
    """A network whose x_0-hat is x_0 + c t is inconsistent by c (t - s); one without the drift is not at all."""
    policy, sampler = family("tiny", LoRA(rank=2)), Sampler(2, 2.0, DDIM(1.0))
    process, x_0 = policy.process, torch.randn(6, *policy.latent_shape)

    def network(c):
        def denoise(x, t, cond, scale):
            a, s = process.coefficients(t, x)
            hat = x_0 + c * t.view(-1, 1, 1, 1)
            eps = (x - a * hat) / s.clamp(min=1e-6)
            return process.target(hat, eps, t)

        return denoise

    policy.denoise = network(0.0)
    assert consistency_loss(policy, sampler, x_0, {}).mean() < 1e-6
    c = 0.5 / process.timesteps(50)[0].item()
    policy.denoise = network(c)
    torch.manual_seed(3)
    got = consistency_loss(policy, sampler, x_0, {}).mean()
    torch.manual_seed(3)
    grid = process.timesteps(50)
    i = torch.randint(50, (6,))
    t, s = grid[i], grid[i + 1]
    gap = torch.where(process.sigma(s) > 0, c * (t - s), 0.0)  # clean data is its own estimate
    torch.testing.assert_close(got, gap.square().mean(), atol=1e-5, rtol=1e-2)
