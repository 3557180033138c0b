import math
from collections import Counter

import pytest
import torch
from torch import nn

from lit_align.algorithms.inference.fk_steering import FKSteering
from lit_align.diffusion.process import Flow
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.rewards.reward import Reward


class Level(Reward):
    """r = mean of the sample: its tilt of a Gaussian N(m, d^2) is N(m + lambda d^2, d^2)."""

    name, differentiable = "level", True

    def forward(self, images, prompts):
        return images.flatten(1).mean(1)


class Bell(nn.Module):
    """The exact flow of N(0.5, 0.2^2) in one dimension, standing in for a policy."""

    latent_shape, device = (1, 1, 1), torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.process, self.calls = Flow(), Counter()

    def condition(self, prompts):
        return {"c": torch.zeros(len(prompts), 1)}

    def denoise(self, x, t, cond, guidance_scale=1.0):
        t = t.view(-1, 1, 1, 1)
        var = (1 - t) ** 2 * 0.04 + t**2
        centred = x - (1 - t) * 0.5
        return t / var * centred - (0.5 + (1 - t) * 0.04 / var * centred)

    def decode(self, z):
        self.calls["decode"] += len(z)
        return z


def steering(lmbda, particles, steps=40, **kwargs):
    options = {"start": 8, "end": 36, "every": 4} | kwargs
    return FKSteering(policy=Bell(), reward=Level(), rewards=[Level()], particles=particles, lmbda=lmbda, sampler=Sampler(steps, 1.0, DDIM(1.0)), **options)


def batch(n, first=0):
    return {"prompt": ["x"] * n, "index": list(range(first, first + n))}


def particles(method, n):
    """All particles' final values with their weights, before the best is picked."""
    torch.manual_seed(0)  # of the resampling
    seen = {}
    method.best = lambda b, latents: seen.update(x=latents.flatten())
    resample = []
    import lit_align.algorithms.inference.fk_steering as fk

    original = fk.Resample.resample
    fk.Resample.resample = lambda self, state: (original(self, state), resample.append(state.logw.clone()))[0]
    try:
        method.sample(batch(n))
    finally:
        fk.Resample.resample = original
    return seen["x"], resample[-1]


def test_without_tilt_particles_are_plain_samples():
    method = steering(0.0, 4)
    x, logw = particles(method, 5)
    prompts, seeds = method.repeated(batch(5))
    assert torch.equal(x, method.sampler(method.policy, prompts, seeds=seeds).x.flatten()) and not logw.any()


@pytest.mark.parametrize("potential,when", [
    ("difference", {}), ("max", {}), ("sum", {"start": 20, "end": 36, "every": 16}),  # sums tilt too far until the last step
])  # fmt: skip
def test_many_particles_follow_the_tilted_law(potential, when):
    """Weighted by what was not yet resampled, particles have the mean m + lambda d^2 of p(x) exp(lambda x)."""
    lmbda, k, groups = 4.0, 256, 12
    plain, _ = particles(steering(0.0, k), groups)
    x, logw = particles(steering(lmbda, k, potential=potential, **when), groups)
    w = logw.view(groups, k).softmax(1)
    mean = (w * x.view(groups, k)).sum(1)
    var = plain.var().item()  # of the sampler with this many steps
    assert mean.mean().item() == pytest.approx(plain.mean().item() + lmbda * var, abs=4 * math.sqrt(var / (groups * k)) + 0.05)
    assert mean.mean() - plain.mean() > 0.08


def test_the_best_particle_is_returned_with_its_scores():
    method = steering(2.0, 6)
    out = method.sample(batch(3))
    assert out["image"].shape == (3, 1, 1, 1)
    torch.testing.assert_close(out["scores"]["level"], out["image"].flatten())
    plain = method.baseline(batch(3))
    assert (out["scores"]["level"] > plain["scores"]["level"]).float().mean() > 0.5


def test_it_is_an_algorithm_that_trains_nothing():
    with pytest.raises(TypeError, match="trains nothing: use predict or test"):
        steering(1.0, 2).batch_loss({})
