"""InPO: inversion in place of forward noising."""

import itertools

import pytest
import torch
from parts import T
from preferences import still

from lit_align.algorithms.preference.inpo import InPO
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
def test_inversion_of_a_mixed_batch_is_each_images_own(family):
    policy = still(family, 0.1)
    inpo = InPO(policy=policy, eta=0.0, inversion_steps=4)
    x_0, cond = torch.randn(6, *policy.latent_shape), policy.condition([f"p{i}" for i in range(6)])
    torch.manual_seed(3)
    t, eps = inpo.noise(x_0, cond)
    assert torch.equal(t[:3], t[3:]) and len(set(t.tolist())) > 1
    x_t = policy.process.add_noise(x_0, eps, t)
    grid = policy.process.timesteps(4).flip(0)
    for row in range(6):
        x, one = x_0[row : row + 1], {k: v[row : row + 1] for k, v in cond.items()}
        for s, u in itertools.pairwise(grid[: grid.tolist().index(t[row].item()) + 1].tolist()):
            s_, u_ = T([s]), T([u])
            with torch.no_grad():
                e = policy.process.to_eps(policy.denoise(x, s_.clamp(min=0), one), x, s_)
            a, b = (lambda v: (policy.process.alpha(v), policy.process.sigma(v)))(s_), (policy.process.alpha(u_), policy.process.sigma(u_))
            x = b[0] * (x - a[1] * e) / a[0] + b[1] * e
        torch.testing.assert_close(x_t[row : row + 1], x, atol=2e-4, rtol=1e-3)


def by_hand(policy, x, s, t, cond, eta=0.0, z=None, refinements=0):
    """One inversion step from x at s up to t: DDIM on the policy's noise, of which a share is fresh."""
    (a_s, s_s), (a_t, s_t) = ((policy.process.alpha(v), policy.process.sigma(v)) for v in (s, t))
    predict = lambda y, time: policy.process.to_eps(policy.denoise(y, time, cond), y, time)
    rise = lambda eps: a_t / a_s * (x - s_s * eps) + s_t * ((1 - eta**2) ** 0.5 * eps + (eta * z if eta else 0))
    y = rise(predict(x, s.clamp(min=0)))
    for _ in range(refinements):
        y = rise(predict(y, t))  # the noise at where the step arrives, at the time it arrives
    return y


@pytest.mark.parametrize("eta,refinements", [(0.0, 0), (0.6, 0), (0.0, 2), (0.6, 1)])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_a_step_keeps_the_variance_adds_fresh_noise_and_refines_at_its_end(family, eta, refinements):
    policy = still(family, 0.1)
    inpo = InPO(policy=policy, eta=eta, refinements=refinements)
    grid = policy.process.timesteps(4).flip(0)
    x, cond = torch.randn(2, *policy.latent_shape), policy.condition(["a", "b"])
    s, t = grid[1:2], grid[3:4]
    with torch.no_grad():
        torch.manual_seed(2)
        got = inpo.inversion_step(x, s[0], t[0], cond)
        torch.manual_seed(2)
        want = by_hand(policy, x, s.expand(1), t.expand(1), cond, eta, torch.randn_like(x), refinements)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


def test_fresh_noise_is_each_steps_own_and_each_images_own():
    policy = still(scale=0.1)
    inpo = InPO(policy=policy, eta=1.0, inversion_steps=2)  # nothing but fresh noise
    x, cond = torch.zeros(64, *policy.latent_shape), policy.condition(["a"] * 64)
    torch.manual_seed(0)
    t, eps = inpo.noise(x, cond)
    assert not torch.allclose(eps[0], eps[1]) and not torch.allclose(eps[0], eps[32])
    assert eps[t == t.max()].var().item() == pytest.approx(1, abs=0.2)
