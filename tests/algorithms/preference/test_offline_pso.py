"""Offline PSO: target images against the reference's own, at the few-step sampler's times."""

from functools import partial

import pytest
import torch
from preferences import at, attached, still

from lit_align.algorithms.preference.offline_pso import OfflinePSO
from lit_align.diffusion.sampler import Sampler


def online(cls, **kwargs):
    """A method ready to collect, its policy away from its reference."""
    return attached(cls(policy=still(scale=0.2), rollout=Sampler(2, 1.0), **kwargs))





def test_the_loss_is_diffusion_dpos(policy):
    assert OfflinePSO(policy=policy, beta=1.0).loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)


def test_winners_are_the_targets_and_losers_the_references_samples():
    method = online(OfflinePSO)
    win = torch.randn(2, *method.policy.latent_shape)
    torch.manual_seed(1)
    pairs = method.collect({"prompt": ["a", "b"], "win_latents": win})
    draw = partial(method.rollout, method.policy, ["a", "b"])
    torch.manual_seed(1)
    with torch.no_grad(), method.policy.reference():
        want = draw().x
    torch.manual_seed(1)
    own = draw().x
    assert torch.equal(pairs["win_latents"], win)
    torch.testing.assert_close(pairs["lose_latents"], want)
    assert not torch.allclose(own, want, atol=1e-3)


def test_pairs_are_noised_to_the_samplers_times_and_no_others():
    method = online(OfflinePSO)
    x = torch.randn(200, *method.policy.latent_shape)
    t, eps = method.noise(x, {})
    grid = method.rollout.timesteps(method.policy)
    assert set(t.tolist()) == set(grid[:-1].tolist()) and torch.equal(t[:100], t[100:]) and torch.equal(eps[:100], eps[100:])
