import math

import torch
from online import online_preference
from parts import Darkness, T, move
from preferences import collecting

from lit_align.algorithms.preference.nash_md import Mixture, NashMD
from lit_align.algorithms.preference.preference import Errors
from lit_align.diffusion.sampler import Sampler


def test_the_mixtures_ends_are_policy_and_reference():
    method = online_preference(NashMD)
    move(method, 0.2)
    draw = lambda *hooks: method.rollout(method.policy, ["a"], seeds=[3], hooks=hooks).x
    with method.policy.reference():
        reference = draw()
    torch.testing.assert_close(draw(Mixture(0.0)), draw())
    torch.testing.assert_close(draw(Mixture(1.0)), reference)


def test_nash_md_drives_the_gap_to_the_preference():
    method = online_preference(NashMD, beta=2.0)
    e = Errors(*(T([x, x]) for x in (0.0, 0.3, 0.0, 0.0)), batch={"p": T([0.8, 0.5])})
    torch.testing.assert_close(method.loss(e), T([(0.6 - 0.6) ** 2, 0.6**2]))
    p = method.preference(T([0.2, 0.5]), T([0.7, 0.5]))
    torch.testing.assert_close(p, T([1 / (1 + math.exp(0.5 / 0.25)), 0.5]))


def test_nash_mds_samples_both_come_from_the_mixture():
    method = collecting(NashMD, reward=Darkness(), mixture=0.4, temperature=0.1)
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
    method = collecting(NashMD, reward=Darkness())
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
