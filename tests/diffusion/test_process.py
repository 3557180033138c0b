import math

import diffusers
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

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


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.02])
@pytest.mark.parametrize("tokens,n", [(256, 2), (1024, 4), (4096, 28)])
def test_dynamic_shift_and_terminal_are_diffusers(shift_type, terminal, tokens, n):
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=terminal, time_shift_type=shift_type
    )
    mu = 0.5 + 0.4 * (tokens - 256) / (8192 - 256)
    config = {**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    scheduler.set_timesteps(n, mu=mu)
    torch.testing.assert_close(Process.from_scheduler(config, tokens).timesteps(n), scheduler.sigmas)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).tolist(), mu=mu)
    torch.testing.assert_close(Process.from_scheduler(config, tokens, grid="inverse").timesteps(n), scheduler.sigmas)


def test_dynamic_shift_needs_the_number_of_tokens_and_may_depend_on_the_steps():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    with pytest.raises(ValueError, match="give the image's number of tokens"):
        Process.from_scheduler(config)
    flow = Process.from_scheduler(config, 7, "inverse", mu=lambda tokens, n: math.log(tokens + n))
    assert flow.timesteps(3)[1].item() == pytest.approx(10 * (2 / 3) / (1 + 9 * (2 / 3)))
    assert flow.timesteps(2)[1].item() == pytest.approx(9 * 0.5 / (1 + 8 * 0.5))


@pytest.mark.parametrize("n", [1, 4, 20])
@pytest.mark.parametrize("scheduler", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_flow_prediction_of_multistep_solvers_has_their_times(scheduler, n):
    scheduler = scheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(n)
    flow = Process.from_scheduler({**scheduler.config, "_class_name": type(scheduler).__name__})
    assert isinstance(flow, Flow)
    torch.testing.assert_close(flow.timesteps(n), scheduler.sigmas.float(), atol=2e-6, rtol=0)


def test_the_snr_shift_of_cogvideox_is_read():
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    vp = Process.from_scheduler({**scheduler.config, "_class_name": "CogVideoXDDIMScheduler"})
    torch.testing.assert_close(vp.alpha(torch.arange(1000)).square(), scheduler.alphas_cumprod.float())
    assert vp.alpha(torch.tensor([999])) == 0 and vp.timesteps(4)[0] == 999


def test_epsilon_at_zero_snr_is_refused_and_v_is_not():
    zero = SD | {"rescale_betas_zero_snr": True}
    with pytest.raises(ValueError, match="epsilon prediction says nothing at zero SNR; use v_prediction"):
        Process.from_scheduler(zero)
    vp, (x_0, eps, _) = Process.from_scheduler(zero | {"prediction_type": "v_prediction"}), draw(Flow())
    t = torch.full((5,), 999)
    x_t, v = vp.add_noise(x_0, eps, t), vp.target(x_0, eps, t)
    assert torch.equal(x_t, eps) and torch.equal(v, -x_0)
    torch.testing.assert_close(vp.to_x0(v, x_t, t), x_0)


@pytest.mark.parametrize("name", ["EDMEuler", "DDPMWuerstchen", "LTXEulerAncestralRF", "FlowMatchLCM"])
def test_schedulers_with_grids_of_their_own_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"the scheduler {name}Scheduler is not read.*_class_name"):
        Process.from_scheduler({"_class_name": f"{name}Scheduler"})


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling", "thresholding"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_options_that_are_not_read_are_refused_by_name(name, option):
    with pytest.raises(ValueError, match=rf"{option}: True is not read.*scheduler: {{{option}: false}}"):
        Process.from_scheduler({"_class_name": name, option: True})


def test_clipping_is_refused_where_the_scheduler_clips():
    with pytest.raises(ValueError, match="clip_sample: True is not read"):
        Process.from_scheduler(SD | {"clip_sample": True})
    Process.from_scheduler(SD | {"clip_sample": True, "_class_name": "EulerDiscreteScheduler"})  # which does not


@pytest.mark.parametrize("name,options,end", [
    ("DDIMScheduler", {}, 0), ("DDIMScheduler", {"set_alpha_to_one": True}, -1), ("PNDMScheduler", {}, 0),
    ("EulerDiscreteScheduler", {}, -1), ("EulerAncestralDiscreteScheduler", {}, -1), ("DDPMScheduler", {}, -1),
    ("DPMSolverMultistepScheduler", {}, -1), ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 0),
])  # fmt: skip
def test_the_last_step_ends_where_the_schedulers_does(name, options, end):
    """SDXL's file has set_alpha_to_one: false, which its EulerDiscreteScheduler does not read."""
    config = SD | {"_class_name": name, "set_alpha_to_one": False, "timestep_spacing": "leading"} | options
    assert Process.from_scheduler(config).timesteps(4)[-1] == end
    if name.startswith(("Euler", "DPM")):
        scheduler = getattr(diffusers, name).from_config({k: v for k, v in config.items() if k != "_class_name"})
        scheduler.set_timesteps(4)
        assert (scheduler.sigmas[-1] == 0) == (end == -1)
