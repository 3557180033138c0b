"""NablaGFlowNet against closed forms on a Gaussian flow."""

import pytest
import torch
from parts import Analytic, Darkness, Level, T, alone, tiny

from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.algorithms.reward_gradient.nabla_gflownet import NablaGFlowNet
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import FlowSDE, Gaussian
from lit_align.rewards.jpeg import JPEGCompressibility

SCALE, M, D = 3.0, 1.5, 0.5


def make(**kwargs):
    policy = Analytic(M, D)
    policy.error = lambda a, b: (a - b).square().flatten(1).mean(1)
    policy.add_reference, policy.adapter, policy.trains_text = (lambda moving: None), None, False
    method = alone(NablaGFlowNet(policy=policy, reward=Level(), rollout=Sampler(4, 1.0, FlowSDE()), scale=SCALE, **kwargs))
    method._rows = {"prompt": ["a", "b"], "columns": {}}
    return method


def one_step(residual, s=0.4, std=0.5, old=0.0):
    """Two steps whose means lie residual std^2 from the reference's, and old std from the rollout's."""
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    mean = residual * std**2 * torch.ones(2, 1, 2, 2)
    reference, gaussian = Gaussian(torch.zeros_like(mean), torch.full_like(mean, std)), Gaussian(mean, torch.full_like(mean, std))
    rest = {"x_t": x, "x_s": x, "t": T([0.6, 0.6]), "s": T([s, s]), "cond": {"c": torch.zeros(2, 1)}}
    zero = torch.zeros(2)
    return StepBatch(gaussian, zero, zero, zero, **rest, reference=reference, old_mean=mean - old * std, rows=T([1, 0]))


@pytest.mark.parametrize("s", [0.7, 0.4, 0.1])
def test_the_reward_score_is_the_slope_of_the_estimate(s):
    """r is the mean of 4 numbers, and x_0-hat of Gaussian data is linear: alpha D^2 / (alpha^2 D^2 + sigma^2)."""
    alpha = 1 - s
    slope = alpha * D**2 / (alpha**2 * D**2 + s**2)
    got = make().reward_score(one_step(0.0, s))
    torch.testing.assert_close(got, torch.full((2, 1, 2, 2), SCALE * alpha**2 * slope / 4), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 0.5, -1.0])
def test_the_loss_is_zero_where_the_residual_score_is_the_rewards(factor):
    method = make(proximal=0.0)
    target = method.reward_score(one_step(0.0)).mean().item()
    loss = method.loss(one_step(factor * target))
    torch.testing.assert_close(loss, torch.full((2,), ((1 - factor) * target) ** 2), rtol=1e-4, atol=1e-9)


def test_the_proximal_term_is_the_distance_from_the_rollouts_policy():
    with_it, without = (make(proximal=p).loss(one_step(0.2, old=0.3)) for p in (2.0, 0.0))
    torch.testing.assert_close(with_it - without, torch.full((2,), 2 * 0.3**2), rtol=1e-4, atol=1e-6)


def test_rewards_are_told_their_own_rows():
    method, asked = make(), []
    method.judge = lambda reward, x_0, rows: asked.append(rows["prompt"]) or x_0.flatten(1).mean(1)
    method.reward_score(one_step(0.0))
    assert asked == [["b", "a"]]


def test_a_fraction_of_the_steps_is_trained():
    method = make(fraction=0.5)
    trajectory, _ = method.collect({"prompt": ["a", "b"]})
    drawn = {tuple(sorted(method.trained_steps(trajectory).tolist())) for _ in range(60)}
    assert all(len(steps) == 2 for steps in drawn) and len(drawn) > 3


def test_the_score_is_taken_at_the_policys_estimate_and_without_its_gradient():
    policy = tiny()
    method = alone(NablaGFlowNet(policy=policy, reward=Darkness(), rollout=Sampler(3, 2.0), scale=SCALE))
    method._rows = {"prompt": ["a"], "columns": {}}
    x = torch.randn(1, *policy.latent_shape)
    rest = {"x_t": x, "x_s": x, "t": T([700]), "s": T([400]), "cond": policy.condition(["a"])}
    step = StepBatch(None, None, None, None, **rest, rows=T([0]))
    torch.manual_seed(0)
    got, d = method.reward_score(step), torch.randn_like(x)

    @torch.no_grad()
    def reward(h):
        return Darkness()(policy.decode(method.rollout.predict(policy, x + h * d, T([400]), rest["cond"])[0]), ["a"])

    slope = (reward(1e-2) - reward(-1e-2)) / 2e-2
    alpha2 = policy.process.alpha(T([400])) ** 2
    torch.testing.assert_close((got * d).flatten(1).sum(1), SCALE * alpha2 * slope, rtol=5e-2, atol=1e-4)
    assert not got.requires_grad


def test_a_reward_without_gradient_is_refused():
    with pytest.raises(ValueError, match="NablaGFlowNet needs the reward's gradient and compressibility has none"):
        NablaGFlowNet(policy=tiny(), reward=JPEGCompressibility())
