import pytest
import torch
from hooked import PROMPTS, at, draw, still
from parts import FAMILIES, Analytic, BlackBox, Darkness, Level, move, tiny

from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.rewards.reward import Reward
from lit_align.steering.autoguidance import AutoGuidance
from lit_align.steering.dps import DPS

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip
PROCESSES = pytest.mark.parametrize("process", [None, Process.from_scheduler(SD)], ids=["flow", "vp"])


class Measured(Reward):
    """-||y - x_0||, not squared."""

    name, differentiable = "measured", True

    def forward(self, images, prompts):
        return -(2.0 - images).flatten(1).norm(dim=1)


@PROCESSES
@pytest.mark.parametrize("rule", [DDIM(0.0), DDIM(1.0)], ids=["ode", "noisy"])
def test_the_guided_mean_of_a_gaussian_policy(process, rule):
    """x_0-hat = m + k (x_t - a m) with k = a d^2 / (a^2 d^2 + s^2): the gradient of -||y - x_0-hat|| is k (y - x_0-hat) / ||y - x_0-hat||."""
    policy = Analytic(process=process)
    x, t, s = at(policy, 2, 6, 5)
    sampler = lambda *hooks: Sampler(6, 1.0, rule, list(hooks))
    plain, x0, _ = sampler().gaussian(policy, x, t, s, policy.condition([""] * 5))
    guided = sampler(DPS(Measured(), 0.3)).gaussian(policy, x, t, s, policy.condition([""] * 5))[0]
    a, sigma = (c[0].item() for c in (policy.process.alpha(t), policy.process.sigma(t)))
    k, gap = a * 0.25 / (a**2 * 0.25 + sigma**2), 2.0 - x0
    want = plain.mean + 0.3 * k * gap / gap.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(guided.mean, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(guided.std, plain.std) and k > 0.1


@FAMILIES
@pytest.mark.parametrize("through", [True, False])
def test_the_gradient_is_that_of_finite_differences(family, through):
    policy, h = still(family), 1e-2
    x, t, s = at(policy)
    hook, sampler = DPS(Darkness(100.0), 1.0, through_denoiser=through), Sampler(4, 3.0)
    cond = policy.condition(PROMPTS)
    mean = lambda *hooks: Sampler(4, 3.0, steering=list(hooks)).gaussian(policy, x, t, s, cond)[0].mean.detach()
    gradient = mean(hook) - mean()
    fixed = policy.denoise(x, t, cond, 3.0)

    def value(x):
        pred = policy.denoise(x, t, cond, 3.0) if through else fixed
        return Darkness(100.0)(policy.decode(policy.process.to_x0(pred, x, t)), PROMPTS).double()

    for seed in range(3):
        u = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        slope = (value(x + h * u) - value(x - h * u)) / (2 * h)
        got = (gradient * u).flatten(1).sum(1).double()
        assert (got - slope).abs().max() < 0.03 * slope.abs().max() + 0.02
    assert sampler.guidance_scale == 3.0 and gradient.abs().max() > 0


@FAMILIES
def test_scale_0_changes_nothing_to_the_last_bit(family):
    assert torch.equal(draw(still(family), DPS(Darkness(), 0.0), eta=1.0), draw(still(family), eta=1.0))


@PROCESSES
def test_it_raises_the_reward_and_the_other_sign_lowers_it(process):
    policy, seeds = Analytic(process=process), list(range(20))
    level = lambda *hooks: draw(policy, *hooks, steps=20, w=1.0, eta=1.0, prompts=[""] * 20, seeds=seeds).mean()
    assert level(DPS(Level(), 0.3)) > level() + 0.1 and level(DPS(Level(), -0.3)) < level() - 0.1


def test_a_step_of_guidances_size_does_not_depend_on_the_rewards_unit():
    policy = still()
    one, thousand = (draw(policy, DPS(Darkness(scale), 0.5, size="guidance")) for scale in (1.0, 1000.0))
    torch.testing.assert_close(one, thousand, atol=1e-3, rtol=1e-3)
    x, t, s = at(policy)
    cond = policy.condition(PROMPTS)
    means = [Sampler(4, 3.0, steering=hooks).gaussian(policy, x, t, s, cond)[0].mean for hooks in ([], [DPS(Darkness(), 0.5, size="guidance")])]
    gap = policy.denoise(x, t, cond) - policy.denoise(x, t, policy.null(2))
    rms = lambda v: v.square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(rms(means[1] - means[0]), 0.5 * rms(gap), atol=1e-4, rtol=1e-3)


def test_a_sample_depends_on_its_seed_alone():
    policy, hook = still(), DPS(Darkness(100.0), 1.0)
    together = draw(policy, hook, eta=1.0)
    for i in range(2):
        alone = draw(policy, hook, eta=1.0, prompts=PROMPTS[i : i + 1], seeds=[3 + i])
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)
    swapped = draw(policy, hook, eta=1.0, prompts=PROMPTS[::-1], seeds=[4, 3])
    torch.testing.assert_close(swapped.flip(0), together, atol=1e-4, rtol=1e-4)


def test_the_gradient_goes_through_what_lies_inside():
    """AutoGuidance inside: the gradient is of the estimate that it has led away."""
    policy, weak = still(), still(shift=0.3)
    x, t, s = at(policy)
    cond = policy.condition(PROMPTS)
    sampler = lambda *hooks: Sampler(4, 3.0, DDIM(0.0), list(hooks))
    inner = AutoGuidance(weak, 2.0)
    shift = sampler(DPS(Darkness(100.0)), inner).gaussian(policy, x, t, s, cond)[0].mean - sampler(inner).gaussian(policy, x, t, s, cond)[0].mean
    leaf = x.clone().requires_grad_()
    to_x0 = lambda policy, w: policy.process.to_x0(policy.denoise(leaf, t, cond, w), leaf, t)
    x0 = to_x0(weak, 1.0) + 2 * (to_x0(policy, 3.0) - to_x0(weak, 1.0))
    (want,) = torch.autograd.grad(Darkness(100.0)(policy.decode(x0), PROMPTS).sum(), leaf)
    torch.testing.assert_close(shift, want, atol=1e-5, rtol=1e-3)


def test_a_training_rollout_keeps_the_gradient_of_its_own():
    """The shift is a constant of it: with scale 0 the policy's gradient is that of plain sampling."""
    grads = []
    for hooks in ([], [DPS(Level(), 0.0)], [DPS(Level(), 1.0)]):
        policy = Analytic()
        Sampler(4, 1.0, FlowSDE(), hooks)(policy, [""] * 3, seeds=[1, 2, 3], grad=all_steps(4)).x.square().sum().backward()
        grads.append(policy.bias.grad.clone())
    assert torch.equal(grads[0], grads[1]) and not torch.allclose(grads[0], grads[2], rtol=1e-2)


def test_a_trained_policy_is_guided_and_its_weights_get_no_gradient():
    policy = tiny()
    move(policy)
    guided = draw(policy, DPS(Darkness(100.0)))
    assert (guided - draw(policy)).abs().max() > 1e-4 and all(p.grad is None for p in policy.parameters())


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="DPS needs the reward's gradient and black_box has none"):
        draw(still(), DPS(BlackBox()))
    with pytest.raises(ValueError, match="guidance_scale is 1: set another scale, or size absolute"):
        draw(still(), DPS(Darkness(), size="guidance"), w=1.0)
    with torch.inference_mode(), pytest.raises(ValueError, match="set --trainer.inference_mode false"):
        DPS(Darkness()).check(still(), Sampler(4, 1.0))
    assert State(torch.zeros(1, 1), {}).branches == {}
