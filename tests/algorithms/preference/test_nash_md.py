"""Nash-MD: self-play against a mixture of the policy and its reference."""

import torch
from parts import Darkness
from preferences import attached, still

from lit_align.algorithms.preference.nash_md import Mixture, NashMD
from lit_align.diffusion.sampler import Sampler


def online(cls, **kwargs):
    """A method ready to collect, its policy away from its reference."""
    return attached(cls(policy=still(scale=0.2), rollout=Sampler(2, 1.0), **kwargs))





def test_both_samples_come_from_the_mixture():
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
