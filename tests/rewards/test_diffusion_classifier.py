"""The diffusion model as a judge."""

import pytest
import torch
from parts import tiny

from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.diffusion_classifier import DiffusionClassifier
from lit_align.rewards.reward import components


@torch.no_grad()
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_it_is_the_denoising_error_that_the_prompt_saves(family, monkeypatch):
    """Image by image, draw by draw: error of the empty prompt minus error of the prompt, with the same times and noises."""
    policy = tiny(family)
    reward, latents, prompts = DiffusionClassifier(policy, draws=3, chunk=4), torch.randn(2, *policy.latent_shape), ["a", "a red cat"]
    monkeypatch.setattr(policy, "encode", lambda images: latents)
    g = torch.Generator().manual_seed(0)
    t = policy.process.sample_timesteps(3, generator=g)
    eps = torch.randn(3, *policy.latent_shape, generator=g)

    def error(x_0, prompt):
        total = 0
        for time, noise in zip(t, eps):
            alpha, sigma = policy.process.alpha(time), policy.process.sigma(time)
            pred = policy.denoise((alpha * x_0 + sigma * noise)[None], time[None], policy.condition([prompt]))[0]
            total += (pred - (noise if family is StableDiffusion else noise - x_0)).square().mean()
        return total / 3

    want = torch.stack([error(x, "") - error(x, p) for x, p in zip(latents, prompts)])
    got = reward(torch.rand(2, 3, 32, 32), prompts)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
    reward.chunk = 1
    torch.testing.assert_close(reward(torch.rand(2, 3, 32, 32), prompts), got, rtol=1e-3, atol=1e-6)
    others = [["b"], ["c", "d"]]
    want = torch.stack([error(latents[0], "b") - error(latents[0], "a"), (error(latents[1], "c") + error(latents[1], "d")) / 2 - error(latents[1], "a red cat")])
    got = components(reward, torch.rand(2, 3, 32, 32), {"prompt": prompts, "columns": {"negatives": others}})
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="'a red cat' has no negatives"):
        reward(torch.rand(2, 3, 32, 32), prompts, [["b"], []])


@torch.no_grad()
def test_the_picture_that_the_prompt_explains_scores_higher(shapes_sd):
    """The pipeline of Shapes that ships: a sample of a prompt, told its own prompt and another one."""
    from lit_align.diffusion.sampler import Sampler
    from lit_align.policies.adapters import Frozen

    policy = StableDiffusion(shapes_sd, Frozen())
    prompts = ["a red circle", "a blue square"]
    images = policy.decode(Sampler(15, 4.0)(policy, prompts, seeds=[0, 1]).x)
    reward = DiffusionClassifier(policy, draws=12)
    own, swapped = reward(images, prompts), reward(images, prompts[::-1])
    assert (own > swapped).all() and (own > 0).all()
