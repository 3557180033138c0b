import pytest
import torch
from hooked import PROMPTS, at, draw, estimates, still
from parts import FAMILIES, Analytic, BlackBox, Darkness, Level

from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.diffusion.transition import DDIM
from lit_align.steering.universal_guidance import UniversalGuidance

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip
PROCESSES = pytest.mark.parametrize("process", [None, Process.from_scheduler(SD)], ids=["flow", "vp"])


@FAMILIES
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_forward_guidance_is_the_gradient_of_the_unconditional_estimate(family, w):
    policy = still(family)
    x, t, s = at(policy)
    leaf, cond = x.clone().requires_grad_(), policy.condition(PROMPTS)
    pred = policy.denoise(leaf, t, policy.null(2) if w != 1 else cond)
    image = policy.decode(policy.process.to_x0(pred, leaf, t))
    (gradient,) = torch.autograd.grad(Darkness(100.0)(image, PROMPTS).sum(), leaf)
    _, plain = estimates(policy, x, t, s, w=w)
    x0, eps = estimates(policy, x, t, s, UniversalGuidance(Darkness(100.0), 20.0), w=w)
    sigma = policy.process.sigma(t).view(-1, 1, 1, 1)
    torch.testing.assert_close(eps, plain - 20 * sigma * gradient, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(policy.process.add_noise(x0, eps, t), x, atol=1e-4, rtol=1e-4)
    assert (eps - plain).abs().max() > 1e-3


@FAMILIES
def test_backward_guidance_is_adam_on_the_estimate(family):
    """Its first step moves every latent by the learning rate, along the sign of the reward's gradient."""
    policy = still(family)
    x, t, s = at(policy)
    plain, _ = estimates(policy, x, t, s)
    leaf = plain.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Darkness(1e4)(policy.decode(leaf), PROMPTS).sum(), leaf)
    x0, eps = estimates(policy, x, t, s, UniversalGuidance(Darkness(1e4), 0.0, backward_steps=1, backward_lr=0.02))
    clear = gradient.abs() > 1e-2
    assert clear.float().mean() > 0.5
    torch.testing.assert_close((x0 - plain)[clear], 0.02 * gradient.sign()[clear], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(policy.process.add_noise(x0, eps, t), x, atol=1e-4, rtol=1e-4)
    further, _ = estimates(policy, x, t, s, UniversalGuidance(Darkness(1e4), 0.0, backward_steps=5, backward_lr=0.02))
    score = lambda x0: Darkness()(policy.decode(x0), PROMPTS)
    assert (score(further) > score(x0)).all() and (score(x0) > score(plain)).all()


def test_self_recurrence_takes_each_step_again_from_new_noise():
    """Written out on the analytic policy, with the generators that the sampler uses."""
    policy, k = Analytic(process=Process.from_scheduler(SD)), 3
    got = draw(policy, UniversalGuidance(Level(), 0.0, repeats=k), w=1.0, steps=3)
    generators = [torch.Generator().manual_seed(s) for s in (3, 4)]
    x, grid = randn_like(torch.empty(2, 1, 2, 2), generators), policy.process.timesteps(3)
    alphas = policy.process.alphas.square()
    for t, s in zip(grid[:-1], grid[1:]):
        for again in range(k):
            eps = policy.denoise(x, t.expand(2), None)
            y = alphas[s].sqrt() * (x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt() + (1 - alphas[s]).sqrt() * eps
            ratio = alphas[t] / alphas[s]
            x = y if again == k - 1 else ratio.sqrt() * y + (1 - ratio).sqrt() * randn_like(y, generators)
    torch.testing.assert_close(got, x, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, draw(policy, w=1.0, steps=3), atol=0.1)


@PROCESSES
def test_noise_added_again_keeps_the_marginal(process):
    """x_t of q(x_t | x_s), for x_s of q(x_s | x_0), has the mean and the variance of q(x_t | x_0)."""
    process = process or Analytic().process
    t, s = process.timesteps(10)[[2, 5]][:, None].expand(2, 40_000)
    x_0, noise = torch.full((40_000, 1), 1.5), lambda: torch.randn(40_000, 1)
    torch.manual_seed(0)
    x_t = process.renoise(process.add_noise(x_0, noise(), s), noise(), s, t)
    a, sigma = process.alpha(t)[0].item(), process.sigma(t)[0].item()
    assert x_t.mean().item() == pytest.approx(1.5 * a, abs=0.02) and x_t.std().item() == pytest.approx(sigma, abs=0.02)
    torch.testing.assert_close(process.renoise(x_0, noise(), s, s), x_0)


@FAMILIES
def test_zero_strength_changes_nothing_to_the_last_bit(family):
    policy = still(family)
    assert torch.equal(draw(policy, UniversalGuidance(Darkness(), 0.0), eta=1.0), draw(policy, eta=1.0))


@PROCESSES
@pytest.mark.parametrize("kwargs", [{"weight": 4.0}, {"weight": 0.0, "backward_steps": 3, "backward_lr": 0.05}, {"weight": 2.0, "repeats": 2}])
def test_it_raises_the_reward(process, kwargs):
    policy, seeds = Analytic(process=process), list(range(20))
    level = lambda *hooks: draw(policy, *hooks, steps=20, w=1.0, prompts=[""] * 20, seeds=seeds).mean()
    assert level(UniversalGuidance(Level(), **kwargs)) > level() + 0.1


def test_evaluations_are_counted():
    for repeats in (1, 3):
        state = Sampler(4, 3.0, DDIM(0.0), [UniversalGuidance(Darkness(), 1.0, repeats)])(still(), PROMPTS)
        assert state.calls["nfe_forward"] == 2 * 4 * repeats


def test_it_needs_a_gradient():
    with pytest.raises(ValueError, match="UniversalGuidance needs the reward's gradient"):
        draw(still(), UniversalGuidance(BlackBox()))
