import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from lit_align.diffusion.process import VP, Flow, Process

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip


@pytest.fixture(params=["epsilon", "v_prediction", "sample", "flow"])
def process(request):
    if request.param == "flow":
        return Flow(shift=3.0)
    return Process.from_scheduler(SD | {"prediction_type": request.param})


def draw(process, n=5):
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, n, 4, 8, 8, generator=g)
    return x_0, eps, process.sample_timesteps(n, generator=g)


def test_a_perfect_prediction_gives_back_x0_and_eps(process):
    x_0, eps, t = draw(process)
    x_t, pred = process.add_noise(x_0, eps, t), process.target(x_0, eps, t)
    torch.testing.assert_close(process.to_x0(pred, x_t, t), x_0, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(process.to_eps(pred, x_t, t), eps, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_diffusers(prediction):
    process, reference = Process.from_scheduler(SD | {"prediction_type": prediction}), DDPMScheduler.from_config(SD)
    x_0, eps, t = draw(process)
    torch.testing.assert_close(process.add_noise(x_0, eps, t), reference.add_noise(x_0, eps, t))
    target = {"epsilon": eps, "v_prediction": reference.get_velocity(x_0, eps, t), "sample": x_0}[prediction]
    torch.testing.assert_close(process.target(x_0, eps, t), target)


def test_flow_noise_is_a_straight_line():
    x_0, eps, t = draw(Flow())
    t_ = t.view(-1, 1, 1, 1)
    torch.testing.assert_close(Flow().add_noise(x_0, eps, t), (1 - t_) * x_0 + t_ * eps)
    torch.testing.assert_close(Flow().target(x_0, eps, t), eps - x_0)


def test_error_identities_between_predictions():
    """Same x_t: ||d eps||^2 = (1 - t)^2 ||d v||^2 and ||d x_0||^2 = t^2 ||d v||^2 for a flow (fact: both maps are affine in v)."""
    flow = Flow()
    x_0, eps, t = draw(flow)
    x_t, v = flow.add_noise(x_0, eps, t), flow.target(x_0, eps, t)
    wrong = v + torch.randn_like(v)
    mse = lambda a, b: (a - b).square().flatten(1).mean(1)
    torch.testing.assert_close(mse(flow.to_eps(wrong, x_t, t), eps), (1 - t) ** 2 * mse(wrong, v), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(mse(flow.to_x0(wrong, x_t, t), x_0), t**2 * mse(wrong, v), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [2, 10, 50])
def test_sampling_grid_is_diffusers(spacing, n):
    scheduler = DDIMScheduler.from_config(SD, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    grid = VP.from_scheduler(dict(scheduler.config)).timesteps(n)
    assert grid[:-1].tolist() == scheduler.timesteps.tolist() and grid[-1] in (0, -1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n", [1, 10, 28])
def test_flow_grid_is_diffusers(shift, n):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(n)
    torch.testing.assert_close(Process.from_scheduler({**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}).timesteps(n), scheduler.sigmas)


def test_clean_data_is_time_minus_one():
    vp = Process.from_scheduler(SD | {"set_alpha_to_one": True})
    end = vp.timesteps(10)[-1:]
    assert end.item() == -1 and vp.alpha(end).item() == 1 and vp.sigma(end).item() == 0
    assert Process.from_scheduler(SD).timesteps(10)[-1].item() == 0


def test_published_alphas():
    vp = Process.from_scheduler(SD)
    abar = vp.alpha(torch.tensor([981, 501, 1, 0])).square()
    torch.testing.assert_close(abar, torch.tensor([0.0057755, 0.2749991, 0.9982960, 0.9991500]), atol=1e-6, rtol=0)


def test_timestep_laws():
    g = torch.Generator().manual_seed(0)
    t = VP.from_scheduler(SD).sample_timesteps(50_000, generator=g)
    assert t.min() == 0 and t.max() == 999 and abs(t.float().mean() - 499.5) < 4
    logit = Flow(shift=1.0).sample_timesteps(50_000, "logit_normal", generator=g).logit()
    assert abs(logit.mean()) < 0.02 and abs(logit.std() - 1) < 0.02
    shifted = Flow(shift=3.0).sample_timesteps(50_000, "logit_normal", generator=g).logit()
    assert abs(shifted.mean() - torch.tensor(3.0).log()) < 0.02  # the shift multiplies the odds t / (1 - t)
    mode = Flow().sample_timesteps(50_000, "mode", generator=g)
    assert mode.min() >= 0 and mode.max() <= 1 and (mode - 0.5).abs().mean() < 0.24  # denser in the middle than uniform's 0.25


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="unknown; use one of"):
        Process.from_scheduler(SD | {"prediction_type": "noise"})
