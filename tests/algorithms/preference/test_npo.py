"""Diffusion-NPO: trained on exchanged labels, sampled as the negative branch."""

import pytest
import torch
from preferences import at, still

from lit_align.algorithms.preference.npo import DiffusionNPO
from lit_align.diffusion.sampler import Sampler


def test_npo_samples_with_the_reference_as_positive_and_the_policy_as_negative_branch():
    policy = still(scale=0.3)
    npo = DiffusionNPO(policy=policy, sampler=Sampler(1, 3.0))
    data = {"prompt": ["a", "b"], "index": [0, 1], "seed": [0, 1]}
    x = torch.stack([torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1)])
    t = policy.process.timesteps(1)
    with torch.no_grad():
        neg = policy.denoise(x, t[:1].expand(2), policy.null(2))
        with policy.reference():
            pos = policy.denoise(x, t[:1].expand(2), policy.condition(data["prompt"]))
            plain = npo.draw(data).x
    eps = neg + 3.0 * (pos - neg)
    x_0 = policy.process.to_x0(eps, x, t[:1].expand(2))
    a, s = policy.process.coefficients(t[1:].expand(2), x)
    with torch.no_grad():
        got = npo.draw(data).x
    torch.testing.assert_close(got, a * x_0 + s * eps, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(got, plain, atol=1e-3)  # the baseline is sampled without the negative policy


def test_given_errors(policy):
    assert DiffusionNPO(policy=policy, beta=1.0).loss(at(1.0)).item() == pytest.approx(1.31326169, abs=1e-8)
