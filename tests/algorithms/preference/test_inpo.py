"""InPO: inversion in place of forward noising."""

import itertools

import pytest
import torch
from parts import T, spy
from preferences import still

from lit_align.algorithms.preference.inpo import InPO
from lit_align.diffusion.transition import DDIM
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
                e = policy.process.to_eps(policy.denoise(x, u_, one), x, s_)  # the network is told where the step arrives
            a, b = (lambda v: (policy.process.alpha(v), policy.process.sigma(v)))(s_), (policy.process.alpha(u_), policy.process.sigma(u_))
            x = b[0] * (x - a[1] * e) / a[0] + b[1] * e
        torch.testing.assert_close(x_t[row : row + 1], x, atol=2e-4, rtol=1e-3)


def by_hand(policy, x, s, t, cond, refinements=0):
    """One inversion step from x at s up to t by DDIM on the mean of the predictions, all told t."""
    (a_s, s_s), (a_t, s_t) = ((policy.process.alpha(v), policy.process.sigma(v)) for v in (s, t))
    y, level, predictions = x, s, []
    for _ in range(1 + refinements):
        predictions.append(policy.process.to_eps(policy.denoise(y, t, cond), y, level))
        eps = sum(predictions) / len(predictions)
        y, level = a_t / a_s * (x - s_s * eps) + s_t * eps, t
    return y


@pytest.mark.parametrize("refinements", [0, 1, 2])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_a_step_is_told_where_it_arrives_and_takes_the_mean_of_its_predictions(family, refinements):
    policy = still(family, 0.1)
    inpo = InPO(policy=policy, refinements=refinements)
    grid = policy.process.timesteps(4).flip(0)
    x, cond = torch.randn(2, *policy.latent_shape), policy.condition(["a", "b"])
    with torch.no_grad(), spy(policy, "denoise") as denoise:
        got = policy.process.add_noise(*inpo.inversion_step(x, grid[1], grid[3], cond), grid[3:4])
    assert all(torch.equal(call.args[1], grid[3].expand(2)) for call in denoise.call_args_list)
    with torch.no_grad():
        want = by_hand(policy, x, grid[1:2], grid[3:4], cond, refinements)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_fresh_noise_is_eta_times_that_of_the_ancestral_step_down_to_the_same_time(family):
    """sqrt((1 - abar_t) / (1 - abar_u) (1 - abar_u / abar_t)) of DDPM's posterior, u the grid's next noisier time."""
    policy = still(family, 0.1)
    inpo, process = InPO(policy=policy, eta=0.3), policy.process
    grid = process.timesteps(10).flip(0)
    for t, u in zip(grid[1:-1], grid[2:]):
        alpha, sigma = (lambda v: process.alpha(v).double()), (lambda v: process.sigma(v).double())
        if family is StableDiffusion:
            want = (sigma(t) ** 2 / sigma(u) ** 2 * (1 - alpha(u) ** 2 / alpha(t) ** 2)).sqrt()
        else:
            want = sigma(t) * (1 - (alpha(u) * sigma(t) / (alpha(t) * sigma(u))) ** 2).sqrt()
        noise = inpo.fresh_noise(torch.zeros(64, *policy.latent_shape), t, u)
        assert noise.std().item() == pytest.approx(0.3 * want.item(), rel=0.05)
        assert not torch.allclose(noise[0], noise[1])


def test_fresh_noise_is_added_at_every_time_but_the_noisiest():
    policy = still(scale=0.1)
    x, cond = torch.randn(64, *policy.latent_shape), policy.condition(["a"] * 64)
    clean, noisy = (InPO(policy=policy, eta=eta, inversion_steps=2) for eta in (0.0, 1.0))
    torch.manual_seed(0)
    t, without = clean.noise(x, cond)
    torch.manual_seed(0)
    again, added = noisy.noise(x, cond)
    assert torch.equal(t, again) and len(t.unique()) == 2
    lower = t == t.min()
    sigma = policy.process.sigma(t.min())
    grid = policy.process.timesteps(2).flip(0)
    std = DDIM(1.0)(policy.process, x[:1], x[:1], x[:1], grid[2:], grid[1:2]).std
    assert (added - without)[lower].std().item() == pytest.approx((std / sigma).item(), rel=0.05)


@pytest.mark.parametrize("option", [{"timestep_sampling": "mode"}], ids=str)
def test_an_option_that_it_would_ignore_is_refused(option):
    with pytest.raises(ValueError, match="InPO has no timestep_sampling, as its times are those of the inversion's grid: leave it out"):
        InPO(policy=still(), **option)
