"""TempFlowGRPO's branches, groups and weights."""

import pytest
import torch
from online import policy_gradient, quiet, step
from parts import T, alone, rollout, spy, tiny

from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.tempflow_grpo import TempFlowGRPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def make(cls=TempFlowGRPO, **kwargs):
    policy = tiny(StableDiffusion3)
    extra = {"branches": 3} if cls is TempFlowGRPO else {}
    return quiet(policy_gradient(cls, policy, rollout=rollout(policy, 4), samples_per_prompt=6, **({"beta": 0.0} | extra | kwargs)))


@pytest.fixture(scope="module")
def collected():
    method = alone(make(minibatch=3))
    with spy(method, "rewards_of") as rewards:
        trajectory, advantage = method.collect({"prompt": ["a", "b"]})
    return method, trajectory, advantage, rewards


def test_each_noise_gives_a_group_at_every_step_but_the_last(collected):
    method, trajectory, _, _ = collected
    grid = method.rollout.timesteps(method.policy)
    times = trajectory.t[:, 0].view(4, 3, 3)  # 2 prompts of 2 noises, 3 steps, 3 branches
    torch.testing.assert_close(times, grid[:3].view(1, 3, 1).expand(4, 3, 3))
    x_t, x_s = (getattr(trajectory, name)[:, 0].unflatten(0, (4, 3, 3)) for name in ("x_t", "x_s"))
    assert (x_t == x_t[:, :, :1]).all() and trajectory.prompts == ["a"] * 18 + ["b"] * 18
    assert all(not torch.equal(x_s[i, j, 0], x_s[i, j, 1]) for i in range(4) for j in range(3))
    assert len({x_t[i, 0, 0].sum().item() for i in range(4)}) == 4


def test_the_trunk_and_what_follows_a_branch_are_the_deterministic_path(collected):
    method, trajectory, _, rewards = collected
    x_t, x_s = (getattr(trajectory, name)[:, 0].unflatten(0, (4, 3, 3)) for name in ("x_t", "x_s"))
    policy, ode = method.policy, Sampler(4, 2.0, DDIM(0.0))
    with torch.no_grad():
        path = ode(policy, ["a"], x=x_t[:1, 0, 0], record=True).trajectory
    torch.testing.assert_close(x_t[0, :, 0], path.x_t[0, :3], atol=1e-4, rtol=1e-4)
    from lit_align.diffusion.state import State

    end = torch.cat([s.x for s in rewards.call_args.args[0]])[4]  # the second branch of the second step of the first noise
    with torch.no_grad():
        want = ode.run(policy, State(x_s[0, 1, 1][None], policy.condition(["a"]), ["a"], {}), first=2).x
    torch.testing.assert_close(end[None], want, atol=1e-4, rtol=1e-4)


def test_advantages_compare_the_branches_of_one_latent(collected):
    _, _, advantage, rewards = collected
    r = rewards.results[0].view(12, 3)
    want = (r - r.mean(1, keepdim=True)) / (r.std(correction=0) + 1e-4)
    torch.testing.assert_close(advantage.view(12, 3), want.clamp(-5, 5), atol=1e-4, rtol=1e-3)


def test_a_steps_loss_is_weighted_by_its_noise():
    method, plain = make(), make(FlowGRPO)
    std = method.rollout.step_std(method.policy)[:-1]
    for s in std:
        one = step(0.2, 1.0, std=s.item())
        torch.testing.assert_close(method.loss(one), plain.loss(one) * s / std.mean())
    assert std[0] > std[-1]


def test_all_branches_are_trained_once(collected):
    method, trajectory, advantage, _ = collected
    minibatches = next(iter(method.optimizer_steps((trajectory, advantage))))
    rows = torch.cat([m["rows"] for m in minibatches])
    assert sorted(rows.tolist()) == list(range(36)) and T(0) == torch.cat([m["steps"] for m in minibatches]).max()


@pytest.mark.parametrize("options,said", [({"branches": 4}, "multiple of them"), ({"branches": 1}, "2 branches or more"), ({"window": 1}, "leave window")])
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make(**options)
