"""DenseGRPO's rewards of steps."""

import pytest
import torch
from online import policy_gradient, quiet
from parts import Darkness, alone, rollout, spy, tiny

from lit_align.algorithms.parts.advantages import PerPrompt, PerReward
from lit_align.algorithms.policy_gradient.dense_grpo import DenseGRPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def make(**kwargs):
    policy = tiny(StableDiffusion3)
    return quiet(policy_gradient(DenseGRPO, policy, rollout=rollout(policy, 4), samples_per_prompt=3, **kwargs))


def test_a_steps_reward_is_what_it_adds_to_where_the_ode_leads():
    method = alone(make(minibatch=4))
    with spy(method, "draw_trajectories") as drawn:
        _, advantage = method.collect({"prompt": ["a", "b"]})
    (trajectory, states), ode, policy = drawn.results[0], Sampler(4, 2.0, DDIM(0.0)), method.policy
    prompts = ["a"] * 3 + ["b"] * 3
    with torch.no_grad():
        values = []
        for i in range(4):
            state = State(trajectory.x_t[:, i], policy.condition(prompts), prompts, {})
            values.append(Darkness()(policy.decode(ode.run(policy, state, first=i).x), prompts))
        values.append(Darkness()(policy.decode(torch.cat([s.x for s in states])), prompts))
    gain = torch.stack(values, 1).diff(dim=1)  # (N, T)
    for i in range(4):
        group = gain[:, i].view(2, 3)
        want = (group - group.mean(1, keepdim=True)) / (group.std(correction=0) + 1e-4)
        torch.testing.assert_close(advantage[:, i].view(2, 3), want, atol=2e-3, rtol=1e-2)
    assert gain[:, 0].abs().max() > 1e-4


def test_the_gains_add_up_to_the_whole_gain():
    method = alone(make())
    method.advantage.forward = lambda ids, r: r
    with spy(method, "judge") as judged, spy(method, "rewards_of") as final:
        _, gains = method.collect({"prompt": ["a"]})
    torch.testing.assert_close(gains.sum(1), final.results[0] - judged.results[0], atol=1e-5, rtol=1e-4)


def test_several_rewards_are_refused():
    with pytest.raises(ValueError, match="put several into a WeightedSum"):
        make(advantage=PerReward())


def test_statistics_of_a_prompt_are_kept_for_each_step():
    method = alone(make(advantage=PerPrompt()))
    method.collect({"prompt": ["a", "b"]})
    assert len(method.advantage.memory) == 2 * 4
