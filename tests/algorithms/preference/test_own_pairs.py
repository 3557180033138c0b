"""Methods that make their own pairs: which sample is the winner, from whom samples are drawn, and the loss."""

from functools import partial

import pytest
import torch
from parts import Darkness
from preferences import at, attached, still

from lit_align.algorithms.preference.nash_md import Mixture, NashMD
from lit_align.algorithms.preference.offline_pso import OfflinePSO
from lit_align.algorithms.preference.online_dpo import OnlineDPO
from lit_align.algorithms.preference.spin import SPINDiffusion
from lit_align.diffusion.sampler import Sampler


def online(cls, **kwargs):
    """A method ready to collect, its policy away from its reference."""
    return attached(cls(policy=still(scale=0.2), rollout=Sampler(2, 1.0), **kwargs))


def test_online_dpos_loss_is_diffusion_dpos(policy):
    method = OnlineDPO(policy=policy, reward=Darkness(), beta=1.0)
    assert method.loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)


def test_online_dpos_pairs_are_each_prompts_best_and_worst_samples_of_the_policy():
    method = online(OnlineDPO, reward=Darkness(), samples_per_prompt=3, minibatch=4)
    torch.manual_seed(1)
    pairs = method.collect({"prompt": ["a", "b"]})
    torch.manual_seed(1)
    with torch.no_grad():
        x = torch.cat([method.rollout(method.policy, p).x for p in (["a", "a", "a", "b"], ["b", "b"])]).unflatten(0, (2, 3))
        dark = 1 - method.policy.decode(x.flatten(0, 1)).mean((1, 2, 3)).view(2, 3)
    rows = torch.arange(2)
    torch.testing.assert_close(pairs["win_latents"], x[rows, dark.argmax(1)])
    torch.testing.assert_close(pairs["lose_latents"], x[rows, dark.argmin(1)])
    assert pairs["prompt"] == ["a", "b"] and method.logged["train/reward"] == pytest.approx(dark.mean().item(), abs=1e-5)


def test_spins_loss_is_diffusion_dpos(policy):
    assert SPINDiffusion(policy=policy, beta=1.0).loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)


def test_offline_psos_loss_is_diffusion_dpos(policy):
    assert OfflinePSO(policy=policy, beta=1.0).loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)


def test_offline_psos_winners_are_the_targets_and_losers_the_references_samples():
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


def test_offline_psos_pairs_are_noised_to_the_samplers_times_and_no_others():
    method = online(OfflinePSO)
    x = torch.randn(200, *method.policy.latent_shape)
    t, eps = method.noise(x, {})
    grid = method.rollout.timesteps(method.policy)
    assert set(t.tolist()) == set(grid[:-1].tolist()) and torch.equal(t[:100], t[100:]) and torch.equal(eps[:100], eps[100:])


def test_nash_mds_samples_both_come_from_the_mixture():
    method = online(NashMD, reward=Darkness(), mixture=0.4, temperature=0.1)
    torch.manual_seed(1)
    pairs = method.collect({"prompt": ["a", "b"]})
    draw = lambda hooks: method.rollout(method.policy, ["a", "b"] * 2, hooks=hooks).x
    torch.manual_seed(1)
    want = draw((Mixture(0.4),))
    torch.manual_seed(1)
    own = draw(())
    got = torch.cat([pairs["win_latents"], pairs["lose_latents"]])
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, own, atol=1e-3)
    dark = 1 - method.policy.decode(want).mean((1, 2, 3))
    torch.testing.assert_close(pairs["p"], torch.sigmoid((dark[:2] - dark[2:]) / 0.1).detach(), atol=1e-4, rtol=1e-4)


def test_the_mixtures_noise_is_the_mixture_of_the_two_noises():
    """One step of DDIM from the same x, by hand."""
    method = online(NashMD, reward=Darkness())
    policy, cond = method.policy, method.policy.condition(["a"])
    x, t = torch.randn(1, *policy.latent_shape), policy.process.timesteps(1)
    with torch.no_grad():
        one = policy.denoise(x, t[:1], cond)
        with policy.reference():
            other = policy.denoise(x, t[:1], cond)
    eps = 0.7 * one + 0.3 * other
    (a_t, s_t), (a_s, s_s) = (policy.process.coefficients(v.expand(1), x) for v in t)
    got = Sampler(1, 1.0)(policy, cond=cond, x=x, hooks=(Mixture(0.3),)).x
    torch.testing.assert_close(got, a_s * (x - s_t * eps) / a_t + s_s * eps, atol=1e-3, rtol=1e-4)
