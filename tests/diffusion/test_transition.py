import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal, kl_divergence

from lit_align.diffusion.process import Flow, Process
from lit_align.diffusion.transition import CPS, DDIM, DanceSDE, FlowSDE, Gaussian, Windowed

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip


def tensors(n=3):
    return torch.randn(3, n, 4, 8, 8, generator=torch.Generator().manual_seed(1))


# t, p, sigma, expected log-prob of an own sample, d mean / d eps: arithmetic on the published betas (T = 50, eta = 1)
DDIM_TABLE = [
    (981, 961, 0.454463, -0.630300, -0.232936),
    (961, 941, 0.448282, -0.616607, -0.226105),
    (741, 721, 0.377494, -0.444737, -0.160634),
    (501, 481, 0.294785, -0.197428, -0.111188),
    (261, 241, 0.207694, 0.152751, -0.083269),
    (41, 21, 0.099887, 0.884774, -0.101611),
    (21, 1, 0.039480, 1.813034, -0.129287),
    (1, 0, 0.020648, 2.461183, -0.020714),
]


@pytest.mark.parametrize("t,p,sigma,expected,slope", DDIM_TABLE)
def test_ddim_table(t, p, sigma, expected, slope):
    vp, x_t = Process.from_scheduler(SD), tensors()[0]
    times = torch.full((3,), t), torch.full((3,), p)

    def mean(eps):
        return DDIM(eta=1.0)(vp, x_t, vp.to_x0(eps, x_t, times[0]), eps, *times)

    eps = tensors()[1]
    g = mean(eps)
    torch.testing.assert_close(g.std.flatten(), torch.full((3,), sigma), atol=2e-6, rtol=0)
    assert (-0.5 - g.std.log() - 0.5 * math.log(2 * math.pi)).flatten()[0].item() == pytest.approx(expected, abs=1e-4)
    assert (mean(eps + 1).mean - g.mean).mean().item() == pytest.approx(slope, abs=2e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_step_is_diffusers(eta, prediction):
    config = SD | {"prediction_type": prediction}
    scheduler, vp = DDIMScheduler.from_config(config), Process.from_scheduler(config)
    scheduler.set_timesteps(20)
    grid = vp.timesteps(20)
    x_t, pred, noise = tensors(1)
    for i, t in enumerate(scheduler.timesteps):
        times = grid[i : i + 1], grid[i + 1 : i + 2]
        g = DDIM(eta)(vp, x_t, vp.to_x0(pred, x_t, times[0]), vp.to_eps(pred, x_t, times[0]), *times)
        theirs = scheduler.step(pred, t, x_t, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(g.sample(noise), theirs, atol=2e-5, rtol=1e-4)


def test_euler_step_is_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    flow, (x_t, v, _) = Flow(3.0), tensors(1)
    grid = flow.timesteps(10)
    for i, t in enumerate(scheduler.timesteps):
        times = grid[i : i + 1], grid[i + 1 : i + 2]
        g = DDIM()(flow, x_t, flow.to_x0(v, x_t, times[0]), flow.to_eps(v, x_t, times[0]), *times)
        torch.testing.assert_close(g.mean, scheduler.step(v, t, x_t).prev_sample, atol=1e-5, rtol=1e-5)
        assert not g.std.any()


# step, sigma, s, expected log-prob of an own sample, d mean / d v, KL of a squared error of v, CPS std at a = 0.8 (SD3
# schedule, shift 3, 10 steps, a = 0.7)
FLOW_TABLE = [
    (0, 1.000000, 0.700000, -1.062264, -0.039871, 0.001622, 0.913137),
    (1, 0.960129, 0.742964, -1.121831, -0.058242, 0.003073, 0.868646),
    (2, 0.913349, 0.536152, -0.795601, -0.069293, 0.008352, 0.815714),
    (3, 0.857692, 0.445897, -0.611272, -0.083818, 0.017668, 0.751685),
    (4, 0.790368, 0.391794, -0.481920, -0.103447, 0.034857, 0.672662),
    (5, 0.707278, 0.352797, -0.377076, -0.130884, 0.068817, 0.572679),
    (6, 0.602151, 0.319070, -0.276594, -0.170907, 0.143455, 0.442123),
    (7, 0.464876, 0.282007, -0.153114, -0.232600, 0.340150, 0.264440),
    (8, 0.278049, 0.225360, 0.071115, -0.335055, 1.105213, 0.008492),
    (9, 0.008929, 0.006278, 3.651751, -0.011116, 1.567536, 0.0),
]


@pytest.mark.parametrize("i,sigma,s,expected,slope,coefficient,cps", FLOW_TABLE)
def test_flow_sde_table(i, sigma, s, expected, slope, coefficient, cps):
    flow, (x_t, v, _) = Flow(3.0), tensors(1)
    grid = flow.timesteps(10)
    times = grid[i : i + 1], grid[i + 1 : i + 2]
    assert times[0].item() == pytest.approx(sigma, abs=1e-6)
    at = lambda rule, v: rule(flow, x_t, flow.to_x0(v, x_t, times[0]), flow.to_eps(v, x_t, times[0]), *times)
    g = at(FlowSDE(0.7), v)
    assert g.std.item() == pytest.approx(s, abs=2e-6)
    assert (-0.5 - g.std.log() - 0.5 * math.log(2 * math.pi)).item() == pytest.approx(expected, abs=1e-4)
    other = at(FlowSDE(0.7), v + 1)
    assert (other.mean - g.mean).mean().item() == pytest.approx(slope, abs=1e-5)
    assert g.kl(other).item() == pytest.approx(coefficient, rel=1e-3)
    assert at(CPS(0.8), v).std.item() == pytest.approx(cps, abs=2e-6)


@pytest.mark.parametrize("shift,n", [(1.0, 10), (3.0, 10), (3.0, 40), (7.0, 16)])
def test_the_first_flow_sde_step_has_std_a(shift, n):
    flow, (x, v, _) = Flow(shift), tensors(1)
    grid = flow.timesteps(n)
    assert FlowSDE(0.7)(flow, x, x, v, grid[:1], grid[1:2]).std.item() == pytest.approx(0.7, abs=1e-5)


def test_dance_sde_table():
    flow, (x, v, _) = Flow(), tensors(1)
    u = torch.linspace(1, 0, 17)
    grid = 3 * u / (1 + 2 * u)
    for i, s in ((0, 0.044233), (1, 0.046199), (8, 0.067082), (14, 0.109545), (15, 0.122474)):
        assert DanceSDE(0.3)(flow, x, x, v, grid[i : i + 1], grid[i + 1 : i + 2]).std.item() == pytest.approx(s, abs=2e-6)


MARGINALS = [  # terminal std for data N(1.5, 0.25), exact velocity, grid 3u / (1 + 2u); from the exact affine recursion
    (DDIM(), 10, 0.36969), (DDIM(), 20, 0.43156), (DDIM(), 40, 0.46472), (DDIM(), 160, 0.49095), (DDIM(), 1280, 0.49886),
    (FlowSDE(0.7), 10, 0.42436), (FlowSDE(0.7), 40, 0.47930), (FlowSDE(0.7), 160, 0.49554), (FlowSDE(0.7), 1280, 0.49987),
    (DanceSDE(0.3), 10, 0.38518), (DanceSDE(0.3), 40, 0.46858), (DanceSDE(0.3), 160, 0.49194), (DanceSDE(0.3), 1280, 0.49898),
    (CPS(0.8), 10, 0.31458), (CPS(0.8), 160, 0.39176), (CPS(0.8), 1280, 0.40143), (CPS(0.3), 40, 0.45012),
]  # fmt: skip


@pytest.mark.parametrize("rule,n,expected", MARGINALS)
def test_terminal_law_by_affine_recursion(rule, n, expected):
    """Every step is x_s = A x_t + B + std z with A, B read off the rule at two points: mean and variance follow exactly."""
    u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    mean, std = terminal(rule, Flow(), (3 * u / (1 + 2 * u)).float())
    assert mean == pytest.approx(1.5, abs=5e-4) and std == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("eta, mean, std", [(1.0, 1.49718, 0.45358), (0.0, 1.44481, 0.47857)])
def test_terminal_law_of_ddim(eta, mean, std):
    """50 steps; x_T ~ N(0, 1) though a little of x_0 is left at T, hence the mean."""
    vp = Process.from_scheduler(SD)
    assert terminal(DDIM(eta), vp, vp.timesteps(50)) == pytest.approx((mean, std), abs=1e-4)


def terminal(rule, process, grid, m=1.5, d=0.5):
    """Mean and deviation of x_0, for data N(m, d^2) and the exact denoiser."""
    mean, var = 0.0, 1.0
    x = torch.tensor([0.0, 1.0]).view(2, 1)
    for t, s in zip(grid[:-1].expand(2, -1).T, grid[1:].expand(2, -1).T):
        alpha, sigma = process.coefficients(t, x)
        gap = (x - alpha * m) / ((alpha * d) ** 2 + sigma**2)
        g = rule(process, x, m + alpha * d**2 * gap, sigma * gap, t, s)
        b, a = g.mean[0].item(), (g.mean[1] - g.mean[0]).item()
        mean, var = a * mean + b, a * a * var + g.std.flatten()[0].item() ** 2
    return mean, math.sqrt(var)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gaussian_agrees_with_torch(reduction):
    a, b, x = tensors()
    std = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    p, q = Gaussian(a, std), Gaussian(b, 2 * std)
    reduce = lambda v: getattr(v.flatten(1), reduction)(1)
    torch.testing.assert_close(p.log_prob(x, reduction), reduce(Normal(a, std).log_prob(x)))
    torch.testing.assert_close(p.kl(q, reduction), reduce(kl_divergence(Normal(a, std), Normal(b, 2 * std))))
    assert p.kl(p).abs().max() == 0


def test_equal_std_kl_is_the_weighted_error_of_eps():
    """KL = (d mean / d eps)^2 / (2 sigma^2) x MSE(eps, eps_ref); at t = 501 the factor is 0.07113."""
    vp, (x_t, eps, ref) = Process.from_scheduler(SD), tensors()
    t, p = torch.full((3,), 501), torch.full((3,), 481)
    at = lambda e: DDIM(1.0)(vp, x_t, vp.to_x0(e, x_t, t), e, t, p)
    mse = (eps - ref).square().flatten(1).mean(1)
    torch.testing.assert_close(at(eps).kl(at(ref)), 0.07113 * mse, rtol=2e-4, atol=0)


def test_the_drawn_sample_carries_no_gradient():
    mean = torch.zeros(1, 4, requires_grad=True)
    g = Gaussian(mean, torch.ones(1, 1))
    x = g.sample(torch.full((1, 4), 2.0))
    g.log_prob(x).sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((1, 4), 2.0 / 4))  # the score (x - mean) / std^2, mean over 4


def test_a_deterministic_step_has_no_likelihood():
    with pytest.raises(ValueError, match="eta > 0"):
        Gaussian(torch.zeros(1, 2), torch.zeros(1, 1)).log_prob(torch.zeros(1, 2))


def test_outside_its_window_the_step_is_the_odes():
    process, rule = Flow(3.0), Windowed(FlowSDE(0.7))
    x_t, x_0, eps = torch.randn(3, 2, 3, 4, 4).unbind(0)
    t, s = torch.tensor([0.8, 0.3]), torch.tensor([0.7, 0.2])
    everywhere = rule(process, x_t, x_0, eps, t, s)
    torch.testing.assert_close(everywhere.mean, FlowSDE(0.7)(process, x_t, x_0, eps, t, s).mean)
    rule.low, rule.high = 0.5, 0.9
    got, ode = rule(process, x_t, x_0, eps, t, s), DDIM(0.0)(process, x_t, x_0, eps, t, s)
    torch.testing.assert_close(got.mean[0], everywhere.mean[0])
    torch.testing.assert_close(got.mean[1], ode.mean[1])
    assert got.std[0] > 0 and got.std[1] == 0
