"""FlashGRPO's weights against the derivative of a step's mean."""

import pytest
import torch
from online import policy_gradient, quiet, step
from parts import T, alone, rollout, tiny

from lit_align.algorithms.policy_gradient.flash_grpo import FlashGRPO
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion3 import StableDiffusion3

A = 0.7


def make(cls=FlashGRPO, steps=5, **kwargs):
    policy = tiny(StableDiffusion3)
    return quiet(policy_gradient(cls, policy, rollout=rollout(policy, steps), samples_per_prompt=4, **({"beta": 0.0} | kwargs)))


def test_lambda_is_that_of_the_paper_under_flow_sde():
    t, s = T([0.9, 0.6, 0.3]), T([0.8, 0.45, 0.1])
    level, root = A * (t / (1 - t)).sqrt(), (t - s).sqrt()
    want = root / level + level * root * (1 - t) / (2 * t)
    torch.testing.assert_close(make().sensitivity(t, s), want, rtol=1e-4, atol=1e-5)


def test_with_ddim_it_is_the_coefficient_of_the_noise_prediction():
    policy = tiny()
    method = policy_gradient(FlashGRPO, policy, rollout=Sampler(4, 1.0, DDIM(1.0)), samples_per_prompt=4)
    process, (t, s) = policy.process, (T([700]), T([400]))
    (a_t, s_t), (a_s, s_s) = ((process.alpha(v), process.sigma(v)) for v in (t, s))
    std = DDIM(1.0)(process, torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), t, s).std.flatten()
    want = (a_s * s_t / a_t - (s_s**2 - std**2).sqrt()).abs() / std
    torch.testing.assert_close(method.sensitivity(t, s), want, rtol=1e-4, atol=1e-5)


def test_every_step_gets_the_same_gradient_in_the_prediction_and_the_weights_have_mean_1():
    method, plain = make(), make(FlowGRPO)
    grid = method.rollout.timesteps(method.policy)
    weights = []
    for t, s in zip(grid[:-2], grid[1:-1]):  # all steps but the last
        one = step(0.0, 1.0, t=t.item(), s=s.item())
        weights.append((method.surrogate(one) / plain.surrogate(one)).detach())
    weights = torch.cat(weights)
    torch.testing.assert_close(weights.mean(), T(1.0))
    equal = weights * method.sensitivity(grid[:-2], grid[1:-1])
    torch.testing.assert_close(equal, equal[:1].expand(len(equal)))
    assert weights[0] > weights[1]  # noisier, and so flatter


def test_one_step_is_noisy_and_the_same_for_all_samples_of_a_prompt():
    method, seen = alone(make()), set()
    for seed in range(12):
        torch.manual_seed(seed)
        trajectory, _ = method.collect({"prompt": ["a", "b"]})
        noisy = trajectory.log_prob != 0
        assert (noisy.sum(1) == 1).all() and (noisy == noisy[:1]).all()
        seen.add(int(noisy[0].nonzero()))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_the_ratio_is_clipped_as_in_flow_grpo(advantage):
    one, method, plain = step(0.5, advantage), make(clip_range=0.1), make(FlowGRPO, clip_range=0.1)
    factor = method.surrogate(step(0.0, 1.0)) / plain.surrogate(step(0.0, 1.0))
    torch.testing.assert_close(method.loss(one), factor * plain.loss(one))


@pytest.mark.parametrize("delta,share", [(0.05, 0.0), (0.5, 1.0), (-0.5, 1.0)])
def test_the_share_of_clipped_ratios_is_logged(delta, share):
    method = make(FlowGRPO, clip_range=0.1)
    method.loss(step(delta, 1.0))
    logged = {call.args[0]: call.args[1].item() for call in method.log_mean.call_args_list}
    assert logged["train/clip_fraction"] == share
