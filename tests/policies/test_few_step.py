"""Distilled models in their own steps: the grids, transitions and guidance of their diffusers pipelines."""

import json

import diffusers
import pytest
import torch
from parts import Level, prompts, trained, trainer

from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.sdpo import SDPO
from lit_align.algorithms.reward_gradient.lasro import LaSRO
from lit_align.algorithms.trajectory_preference.pso import PSO
from lit_align.cli import main
from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import CPS, DDIM, TCD
from lit_align.policies.adapters import Frozen, LoRA
from lit_align.policies.latent_consistency import LatentConsistency
from lit_align.policies.sana_sprint import SanaSprint
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.rewards.latent import LatentReward
from lit_align.steering.reno import ReNO

PROMPTS = ["a red circle", "two blue squares, and a star"]  # of different length
ANCESTRAL = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
LCM, TRAJECTORY = {"_class_name": "LCMScheduler", "clip_sample": False}, {"_class_name": "TCDScheduler", "clip_sample": False}


def noise(policy):
    return torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))


def by_pipeline(policy, n, **kwargs):
    policy.pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(7)
    size = {"height": policy.height, "width": policy.width, "output_type": "latent"}
    return policy.pipe(list(PROMPTS), num_inference_steps=n, latents=noise(policy), **size, **kwargs).images


def by_us(policy, n, transition, scale=1.0, w=1.0):
    torch.manual_seed(7)
    with torch.no_grad():
        return Sampler(n, w, transition)(policy, PROMPTS, x=scale * noise(policy)).x


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL], ids=lambda c: c.__name__)
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("scheduler,eta", [(ANCESTRAL, 1.0), (EULER, 0.0)], ids=["ancestral", "euler"])
def test_turbo_takes_the_pipelines_steps(scheduler, eta, n, family):
    """They scale the first noise by sigma(T) = 0.9977, as Euler schedulers do."""
    policy = family("tiny", Frozen(), resolution=(16, 24), scheduler=scheduler)
    start = policy.process.sigma(policy.process.timesteps(n)[0])
    assert start == pytest.approx(0.9977, abs=1e-4)
    same(by_us(policy, n, DDIM(eta), start), by_pipeline(policy, n, guidance_scale=0.0))


@pytest.mark.parametrize("n", [1, 4, 7])
def test_lcm_takes_the_pipelines_steps_and_its_guidance_as_an_input(n):
    policy = LatentConsistency("tiny", Frozen(), resolution=(16, 24))
    ours = by_us(policy, n, CPS(1.0))
    same(ours, by_pipeline(policy, n, guidance_scale=8.0))
    other = LatentConsistency("tiny", Frozen(), resolution=(16, 24), distilled_guidance=1.5)
    same(by_us(other, n, CPS(1.0)), by_pipeline(other, n, guidance_scale=1.5))
    assert (by_us(other, n, CPS(1.0)) - ours).abs().max() > 1e-3


@pytest.mark.parametrize("n", [1, 4])
def test_an_lcm_lora_takes_guidance_outside(n):
    policy = StableDiffusion("tiny", Frozen(), resolution=16, scheduler=LCM)
    same(by_us(policy, n, CPS(1.0), w=2.0), by_pipeline(policy, n, guidance_scale=2.0))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_tcd_takes_the_pipelines_steps(n, gamma):
    policy = StableDiffusionXL("tiny", Frozen(), resolution=(16, 24), scheduler=TRAJECTORY)
    same(by_us(policy, n, TCD(gamma)), by_pipeline(policy, n, guidance_scale=0.0, eta=gamma))


@pytest.mark.parametrize("n,options", [(1, {"intermediate_timesteps": None}), (2, {}), (4, {"intermediate_timesteps": None})])
def test_sana_sprint_takes_the_pipelines_steps(n, options):
    policy = SanaSprint("tiny", Frozen(), resolution=(32, 64), max_sequence_length=48, distilled_guidance=3.0)
    options |= {"guidance_scale": 3.0, "use_resolution_binning": False, "max_sequence_length": 48}
    ours = by_us(policy, n, CPS(1.0))
    same(ours, by_pipeline(policy, n, **options))
    policy.distilled_guidance = 1.0
    assert (by_us(policy, n, CPS(1.0)) - ours).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["LCM", "TCD"])
@pytest.mark.parametrize("n", [1, 3, 4, 50])
def test_the_grid_is_the_schedulers(name, n):
    scheduler = getattr(diffusers, f"{name}Scheduler")(clip_sample=False)
    scheduler.set_timesteps(n)
    process = Process.from_scheduler({**scheduler.config, "_class_name": f"{name}Scheduler"})
    assert process.timesteps(n).tolist() == [*scheduler.timesteps.tolist(), -1 if name == "LCM" else 0]
    with pytest.raises(ValueError, match="51 sampling steps asked for; this process was distilled to between 1 and 50"):
        process.timesteps(51)


def test_the_boundary_condition_is_the_schedulers():
    scheduler = diffusers.LCMScheduler(clip_sample=False)
    process = Process.from_scheduler({**scheduler.config, "_class_name": "LCMScheduler"})
    x, eps = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(timesteps=[999, 59, 1, 0])
    for t in scheduler.timesteps:
        theirs = scheduler.step(eps, t, x).denoised
        torch.testing.assert_close(process.to_x0(eps, x, t.expand(3)), theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(process.to_x0(eps, x, torch.full((3,), -1)), x)  # clean data


def test_the_initial_noise_matters_to_a_consistency_model():
    sampler = Sampler(2, 1.0, CPS(1.0))
    assert not sampler.forgets_noise(SanaSprint("tiny", Frozen())) and not sampler.forgets_noise(LatentConsistency("tiny", Frozen()))


def test_clipping_is_refused():
    with pytest.raises(ValueError, match="the scheduler's clip_sample: True is not read"):
        StableDiffusion("tiny", scheduler={"_class_name": "LCMScheduler", "clip_sample": True})


def test_a_unet_without_the_input_refuses_its_scale():
    with pytest.raises(ValueError, match="distilled_guidance: 2.0 is for a UNet that takes its guidance scale as an input"):
        StableDiffusionXL("tiny", distilled_guidance=2.0)


def test_sdxl_reads_the_input_too(tmp_path):
    pipe = StableDiffusionXL("tiny").pipe
    config = {k: v for k, v in pipe.unet.config.items() if k != "_use_default_values"}
    pipe.unet = diffusers.UNet2DConditionModel.from_config(config | {"time_cond_proj_dim": 8})
    pipe.register_modules(scheduler=diffusers.LCMScheduler.from_config(pipe.scheduler.config, clip_sample=False))
    pipe.save_pretrained(tmp_path)
    policy = StableDiffusionXL(str(tmp_path), Frozen())
    same(by_us(policy, 2, CPS(1.0)), by_pipeline(policy, 2, guidance_scale=8.0))


METHODS = {
    PSO: lambda rollout: {"reward": Level(), "rollout": rollout, "beta": 10.0, "clip_range": 0.1, "samples_per_prompt": 2},
    SDPO: lambda rollout: {"reward": Level(), "rollout": rollout, "clip_range": 0.1},
    DDPO: lambda rollout: {"reward": Level(), "rollout": rollout, "clip_range": 0.1},
    LaSRO: lambda rollout: {"reward": Level(), "rollout": rollout, "surrogate": LatentReward(StableDiffusion("tiny", Frozen()), guidance_scale=1.0), "pretrain": 1, "weights": (1.0, 0.0, 1.0), "samples_per_prompt": 2},
}  # fmt: skip


@pytest.mark.parametrize("family,transition,options", [
    (LatentConsistency, CPS(1.0), {}),
    (StableDiffusion, TCD(0.3), {"scheduler": TRAJECTORY}),
    (SanaSprint, CPS(1.0), {"resolution": 32, "max_sequence_length": 16}),
], ids=["LCM", "TCD", "SCM"])  # fmt: skip
@pytest.mark.parametrize("method", METHODS, ids=lambda c: c.__name__)
def test_methods_for_few_steps_train_in_them(method, family, transition, options, tmp_path):
    torch.manual_seed(0)
    if method is LaSRO and family is SanaSprint:
        pytest.skip("LaSRO's surrogate reads the latents of a UNet")
    module = method(policy=family("tiny", LoRA(rank=2), **options), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), **METHODS[method](Sampler(3, 1.0, transition)))
    before = [p.detach().clone() for p in trained(module.policy)]
    trainer(tmp_path).fit(module, prompts(2, batches=3))
    assert all(p.isfinite().all() for p in module.policy.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, trained(module.policy), strict=True))


@pytest.mark.parametrize("family,options", [(LatentConsistency, {}), (SanaSprint, {"resolution": 32, "max_sequence_length": 16})], ids=["LCM", "SCM"])
@pytest.mark.parametrize("n", [1, 2])
def test_reno_raises_the_reward_in_a_distilled_models_steps(family, options, n):
    policy = family("tiny", Frozen(), **options)
    inner = Sampler(n, 1.0, CPS(1.0))
    reward = lambda x: Level()(policy.decode(x), PROMPTS).mean()
    with torch.no_grad():
        before = reward(inner(policy, PROMPTS, seeds=[0, 1]).x)
    after = reward(ReNO(Level(), iterations=8, sampler=inner)(policy, PROMPTS, seeds=[0, 1]).x.detach())
    assert after > before


RECIPES = {"pso_sdxl_turbo": ANCESTRAL, "lasro_sdxl_turbo": ANCESTRAL, "sdpo_sdturbo": ANCESTRAL, "reno_sdxl_turbo": ANCESTRAL, "reno_sdturbo": EULER}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_of_distilled_models_take_the_models_own_steps(recipe, tmp_path, monkeypatch):
    """Under smoke, with the scheduler of the published checkpoint."""
    monkeypatch.chdir(tmp_path)
    scheduler, steered = json.dumps(RECIPES[recipe]), recipe.startswith("reno")
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    files = ["--config", recipe, "--config", "smoke", "--model.policy.scheduler", scheduler]
    module = main(["test" if steered else "fit", *files, *quiet]).model
    policy, sampler = module.policy, module.sampler.sampler if steered else module.rollout
    theirs = by_pipeline(policy, sampler.steps, guidance_scale=0.0)
    grid = policy.process.timesteps(sampler.steps)
    assert grid.tolist() == [*policy.pipe.scheduler.timesteps.long().tolist(), -1] and sampler.guidance_scale == 1
    same(by_us(policy, sampler.steps, sampler.transition, policy.process.sigma(grid[0])), theirs)
