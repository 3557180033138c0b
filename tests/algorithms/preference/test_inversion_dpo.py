"""InversionDPO against a DDIM inversion by hand."""

import pytest
import torch
from parts import FAMILIES
from preferences import attached, batch, still

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.inversion_dpo import InversionDPO
from lit_align.diffusion.transition import DDIM


def make(family, scale=0.2, **kwargs):
    return attached(InversionDPO(policy=still(family, scale), **({"inversion_steps": 4} | kwargs)))


@FAMILIES
def test_the_errors_are_those_of_the_step_back_along_the_references_inversion(family):
    method = make(family)
    policy, process, data = method.policy, method.policy.process, {"prompt": ["a"], "index": [0]}
    z = torch.randn(2, 1, *policy.latent_shape)
    data |= {"win_latents": z[0], "lose_latents": z[1]}
    cond = policy.condition(data["prompt"])
    grid = process.timesteps(4).flip(0)
    for seed in range(6):
        torch.manual_seed(seed)
        e = method.errors(data)
        stop = int((grid - e.t[0]).abs().argmin())
        assert stop >= 1
        for key, error, ref_error in (("win", e.win, e.ref_win), ("lose", e.lose, e.ref_lose)):
            x = data[f"{key}_latents"]
            with policy.reference(), torch.no_grad():
                for i in range(1, stop + 1):
                    s, t = grid[i - 1 : i], grid[i : i + 1]
                    eps = process.to_eps(policy.denoise(x, t, cond), x, s)
                    a, b = process.coefficients(s, x)
                    clean = (x - b * eps) / a
                    below, x = x, process.add_noise(clean, eps, t)
                back = DDIM()(process, x, clean, eps, t, s).mean
                torch.testing.assert_close(back, below, atol=1e-4, rtol=1e-4)  # the target undoes the step
                want_ref = (policy.denoise(x, t, cond) - process.target(clean, eps, t)).square().mean()
            want = (policy.denoise(x, t, cond) - process.target(clean, eps, t)).square().mean()
            torch.testing.assert_close(error[0], want, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ref_error[0], want_ref, atol=1e-5, rtol=1e-4)


@FAMILIES
def test_the_inversion_is_the_references_and_leaves_the_policy_as_it_was(family):
    """Another policy, the same reference: the same target."""
    targets = []
    for scale in (0.0, 0.2):
        method = make(family, scale)
        torch.manual_seed(0)
        targets.append(method.errors(batch(method.policy, 2)).target)
        assert not method.policy.in_reference
    torch.testing.assert_close(*targets)


def test_the_loss_is_diffusion_dpo_and_its_start_has_a_gradient():
    from parts import trained

    from lit_align.policies.stable_diffusion import StableDiffusion

    method = make(StableDiffusion, 0.0, beta=700.0)
    e = method.errors(batch(method.policy, 2))
    torch.testing.assert_close(method.loss(e), attached(DiffusionDPO(policy=method.policy, beta=700.0)).loss(e))
    grads = torch.autograd.grad(method.loss(e).sum(), trained(method.policy))
    assert e.ref_win.min() > 0 and sum(g.abs().sum() for g in grads) > 0


def test_fresh_noise_is_no_option():
    from lit_align.policies.stable_diffusion import StableDiffusion

    with pytest.raises(TypeError, match="eta"):
        make(StableDiffusion, eta=0.5)
