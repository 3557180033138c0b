import math

import pytest
import torch
from hooked import PROMPTS, SEEDS, still
from parts import Analytic, BlackBox, Darkness, Level
from torch import nn

from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.reward import Reward
from lit_align.steering.dno import DNO, improbability
from lit_align.steering.svdd import SVDD

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip
D = 16384


def test_normal_noise_is_as_probable_as_the_bounds_can_say():
    """Where both bounds are clamped the gradient is 0; the mean's is exceeded by chance by one noise in four."""
    z = torch.randn(40, 1, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    penalty = improbability(z, permutations=0)
    least = penalty < 2 * math.log(2) + 1e-6
    assert 0.5 < least.float().mean() < 0.95 and penalty.max() < 2 * math.log(2) + 3
    (gradient,) = torch.autograd.grad(penalty.sum(), z)
    assert not gradient[least].any() and gradient[~least].flatten(1).any(1).all()
    assert (improbability(z[:8]) < 4 * math.log(2) + 1.5).all()


def log_p(z, k=4):
    """Both bounds of one row in double precision."""
    blocks = z.double().view(-1, k)
    m = len(blocks)
    mean = blocks.mean(0).square().sum().item()
    off = torch.linalg.eigvalsh(blocks.T @ blocks / m - torch.eye(k)).abs().max().item()
    return min(-m * mean / (2 * k), -math.log(2)), min(-m * max(0, math.sqrt(1 + off) - 1 - math.sqrt(k / m)) ** 2 / 2, -math.log(2))


@pytest.mark.parametrize("change,about", [
    (lambda z: 1.05 * z, (None, (-8, -1.5))), (lambda z: z + 0.05, ((-12, -2.5), None)), (lambda z: 0.8 * z + 0.6 * z.roll(1), (None, (-230, -150))),
])  # fmt: skip
def test_scaled_shifted_and_smoothed_noise(change, about):
    z = change(torch.randn(D, generator=torch.Generator().manual_seed(1)))
    first, second = log_p(z)
    for got, want in zip((first, second), about):
        assert want is None or want[0] < got < want[1]
    as_it_lies = improbability(z[None], permutations=0)
    assert as_it_lies.item() == pytest.approx(-(first + second), rel=1e-3)
    order = torch.randperm(D, generator=torch.Generator().manual_seed(0))
    both = improbability(z[None], permutations=1)
    assert both.item() == pytest.approx(-(first + second + sum(log_p(z[order]))), rel=1e-3)


def test_the_penalty_is_of_each_row_and_falls_along_its_gradient():
    z = torch.randn(2, 4096, generator=torch.Generator().manual_seed(2))
    z[1] = 1.2 * z[1]
    both = improbability(z)
    torch.testing.assert_close(both, torch.cat([improbability(z[:1]), improbability(z[1:])]))
    assert both[1] > both[0] + 10
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(improbability(z).sum(), z)
    assert improbability(z - 0.1 * gradient / gradient.norm())[1] < both[1]


@pytest.mark.parametrize("sampler", [Sampler(3, 2.0, DDIM(1.0)), Sampler(3, 2.0)], ids=["noisy", "ode"])
@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["sd", "sd3"])
def test_one_iteration_is_plain_sampling_to_the_last_bit(family, sampler):
    policy = still(family)
    plain = sampler(policy, PROMPTS, seeds=SEEDS).x
    assert torch.equal(DNO(Darkness(), 1, sampler=sampler)(policy, PROMPTS, seeds=SEEDS).x, plain)


def test_all_noise_is_optimised_by_adamw():
    """On the analytic chain, written out: z_T and each step's noise, one update of Adam's sign steps."""
    process, steps = Process.from_scheduler(SD), 3
    policy = Analytic(process=process)
    got = DNO(Level(), 2, lr=0.05, gamma=0.0, sampler=Sampler(steps, 1.0, DDIM(1.0)))(policy, [""], seeds=[5])
    g = torch.Generator().manual_seed(5)
    z = torch.stack([torch.randn(1, 2, 2, generator=g) for _ in range(steps + 1)])

    def chain(z):
        x, grid = z[:1], process.timesteps(steps)
        for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
            eps = policy.denoise(x, t.expand(1), None)
            gaussian = DDIM(1.0)(process, x, process.to_x0(eps, x, t.expand(1)), eps, t.expand(1), s.expand(1))
            x = gaussian.mean + gaussian.std * z[i + 1 : i + 2]
        return x

    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(chain(leaf).mean(), leaf)
    gradient = gradient * min(1, 1 / gradient.norm().item())
    z = z + 0.05 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(got.x, chain(z), atol=1e-3, rtol=1e-3)
    assert (gradient.abs() > 1e-6).all()  # the last step of SD's schedule is noisy too


def test_the_hybrid_gradient_averages_to_mu_squared_j_j_gradient():
    """Of a linear M with image x = J z and a linear reward w x, sum (r_i - r)(x_i - x) / B -> mu^2 J J^T w."""
    torch.manual_seed(0)
    j, w = torch.randn(6, 4), torch.randn(6)

    class Linear(Reward):
        name, differentiable = "linear", False

        def forward(self, images, prompts):
            return images.flatten(1) @ w

    class Decoder(nn.Module):
        calls = Analytic().calls

        def decode(self, z):
            return (z.flatten(1) @ j.T).view(-1, 1, 2, 3)

    method = DNO(Linear(), mu=0.1, perturbed=4_000)
    start = type("Start", (), {"rows": {"prompt": [""], "columns": {}}})
    z = torch.randn(1, 4)
    image = Decoder().decode(z)
    got = method.direction(Decoder(), start, image, Linear()(image, [""]), lambda: z + 0.1 * torch.randn(1, 4))
    want = j @ j.T @ w
    torch.testing.assert_close(got.flatten(), want / want.norm(), atol=0.08, rtol=0.1)


@pytest.mark.parametrize("reward,iterations", [(Darkness(100.0), 6), (BlackBox(), 6)], ids=["gradient", "hybrid"])
def test_it_raises_the_reward_with_and_without_its_gradient(reward, iterations):
    policy, sampler = still(StableDiffusion3), Sampler(3, 1.0, FlowSDE())
    state = DNO(reward, iterations, lr=0.05, gamma=0.0, perturbed=8, sampler=sampler)(policy, PROMPTS, seeds=SEEDS)
    plain = sampler(policy, PROMPTS, seeds=SEEDS)
    dark = lambda x: Darkness()(policy.decode(x), PROMPTS)
    assert (dark(state.x) > dark(plain.x) + 1e-3).all()


def test_the_regulariser_keeps_noise_probable():
    policy = Analytic(process=Process.from_scheduler(SD), shape=(1, 32, 32))
    run = lambda gamma: DNO(Level(), 25, lr=0.05, gamma=gamma, permutations=5, sampler=Sampler(2, 1.0))(policy, [""], seeds=[0])
    free, held = (next(iter(run(gamma).extras.values())) for gamma in (0.0, 1.0))
    assert free["improbability"] > held["improbability"] + 1 and free["reward"] > held["reward"]
    assert held["improbability"] < 6 and (held["radius"] - 1).abs() < 0.05


def test_a_sample_depends_on_its_seed_alone():
    make = lambda: DNO(BlackBox(), 3, lr=0.05, perturbed=2, permutations=3, sampler=Sampler(2, 2.0, DDIM(1.0)))
    together = make()(still(), PROMPTS, seeds=SEEDS).x
    for k in range(2):
        alone = make()(still(), PROMPTS[k : k + 1], seeds=SEEDS[k : k + 1]).x
        torch.testing.assert_close(alone[0], together[k], atol=1e-3, rtol=1e-2)


def test_it_replaces_what_else_would_draw_the_noise():
    inside = Sampler(3, 1.0, DDIM(1.0), [SVDD(Darkness(), candidates=2)])
    with pytest.raises(ValueError, match="would do nothing"):
        DNO(Darkness(), 2, sampler=inside)(still(), PROMPTS)
