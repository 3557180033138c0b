"""Adjoint Matching: its adjoints and its fixed point in closed form, on a chain that is linear and Gaussian."""

import pytest
import torch
from chain import Chain
from gradients import BATCH
from parts import Darkness, Level, alone, tiny

from lit_align.algorithms.reward_gradient.adjoint_matching import AdjointMatching
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.jpeg import JPEGCompressibility

STEPS, SCALE = 8, 0.7


def chained(steps=STEPS, **kwargs):
    policy = Chain(steps)  # it takes one time at once
    policy.decode, policy.error = (lambda x: x), (lambda a, b: (a - b).square().flatten(1).mean(1))
    policy.add_reference = lambda moving: None
    return alone(AdjointMatching(policy=policy, reward=Level(), rollout=Sampler(steps, 1.0, DDIM(1.0)), scale=SCALE, minibatch=1, late=steps, samples_per_prompt=1, **kwargs))


def test_the_adjoint_of_a_linear_reward_is_the_chains_slope():
    """r = x_0, so a_s = -scale d x_0 / d x_s."""
    method = chained()
    trajectory, adjoint = method.collect({"prompt": [""] * 7})
    slope, *_ = method.policy.downstream()
    torch.testing.assert_close(adjoint.squeeze(-1), (-SCALE * slope).float().expand(7, -1), rtol=1e-4, atol=1e-6)
    assert adjoint.shape == trajectory.x_s.shape


@pytest.mark.parametrize("factor,zero", [(1.0, True), (0.5, False), (-1.0, False)])
def test_the_loss_is_zero_at_the_tilted_law_alone(factor, zero):
    """p_ref exp(scale x_0) shifts the mean of step i by std_i^2 scale d_i."""
    method = chained()
    slope, *_ = method.policy.downstream()
    std2 = method.policy.std2
    method.policy.control = lambda x, i: factor * SCALE * std2[i] * slope[i]
    torch.manual_seed(0)
    collected = method.collect({"prompt": [""] * 6})
    (minibatches,) = list(method.optimizer_steps(collected))
    loss = sum(method.batch_loss(m) for m in minibatches).item()
    noisy = std2 > 0
    want = ((1 - factor) * SCALE * (std2.sqrt() * slope)[noisy]).square().mean().item()
    assert loss == pytest.approx(want, rel=1e-3, abs=1e-6) and (loss < 1e-6) == zero


def test_the_adjoint_runs_through_the_reference_and_not_through_the_policy():
    method = chained()
    method.policy.control = lambda x, i: 0.3 * x  # would change the slopes
    _, adjoint = method.collect({"prompt": [""] * 3})
    slope, *_ = method.policy.downstream()
    torch.testing.assert_close(adjoint.squeeze(-1), (-SCALE * slope).float().expand(3, -1), rtol=1e-4, atol=1e-6)


def test_on_a_real_pipeline_the_adjoint_is_a_finite_difference_of_the_reward():
    policy = tiny()
    method = alone(AdjointMatching(policy=policy, reward=Darkness(), rollout=Sampler(3, 2.0, DDIM(1.0)), scale=5.0, minibatch=4, samples_per_prompt=1))
    trajectory, adjoint = method.collect(BATCH)
    cond, grid = policy.condition(BATCH["prompt"]), method.rollout.timesteps(policy)
    torch.manual_seed(1)
    d = torch.randn_like(trajectory.x_s[:, 1])

    @torch.no_grad()
    def reward(h):
        """x_0 without further noise, from a shifted x_s of step 1: a shift of the mean passes through the same noise."""
        x, (t, s) = trajectory.x_s[:, 1] + h * d, (grid[k].expand(2) for k in (2, 3))
        with policy.reference():
            mean = method.rollout.gaussian(policy, x, t, s, cond)[0].mean
            base = method.rollout.gaussian(policy, trajectory.x_s[:, 1], t, s, cond)[0].mean
        x_0 = trajectory.x_s[:, 2] + mean - base
        return Darkness()(policy.decode(x_0), BATCH["prompt"])

    slope = (reward(1e-2) - reward(-1e-2)) / 2e-2
    torch.testing.assert_close((adjoint[:, 1] * d).flatten(1).sum(1), -5.0 * slope, rtol=2e-2, atol=1e-4)


def test_late_steps_are_always_trained_and_as_many_early_ones_drawn():
    method = chained()
    method.late = 2
    trajectory, _ = method.collect({"prompt": [""]})
    noisy = int((trajectory.log_prob[0] != 0).sum())
    drawn = [sorted(method.trained_steps(trajectory).tolist()) for _ in range(40)]
    assert all(len(steps) == 4 and steps[2:] == [noisy - 2, noisy - 1] for steps in drawn)
    assert {i for steps in drawn for i in steps[:2]} == set(range(noisy - 2))


@pytest.mark.parametrize("transition", [DDIM(0.5), FlowSDE()])
def test_a_sampler_that_remembers_its_noise_is_refused(transition):
    with pytest.raises(ValueError, match="AdjointMatching needs a sampler that forgets its initial noise: .* DDIM with eta 1"):
        AdjointMatching(policy=tiny(StableDiffusion3), reward=Darkness(), rollout=Sampler(3, 1.0, transition))


def test_a_reward_without_gradient_is_refused():
    with pytest.raises(ValueError, match="AdjointMatching needs the reward's gradient and compressibility has none"):
        AdjointMatching(policy=tiny(StableDiffusion), reward=JPEGCompressibility())
