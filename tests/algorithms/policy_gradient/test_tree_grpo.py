"""TreeGRPO's tree and advantages."""

import pytest
import torch
from online import policy_gradient, quiet
from parts import Darkness, T, alone, rollout, spy, tiny

from lit_align.algorithms.policy_gradient.tree_grpo import TreeGRPO
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def make(**kwargs):
    policy = tiny(StableDiffusion3)
    options = {"splits": (0, 2), "branching": 3, "samples_per_prompt": 1} | kwargs
    return quiet(policy_gradient(TreeGRPO, policy, rollout=rollout(policy, 4), **options))


def test_noise_enters_at_the_splits_alone():
    method = alone(make(minibatch=9))
    trajectory, _ = method.collect({"prompt": ["a", "b"]})
    assert len(trajectory.t) == 18 and method.trained_steps(trajectory).tolist() == [0, 2]
    x_s = trajectory.x_s.unflatten(0, (2, 3, 3))  # prompts, children of the root, their children
    for i, groups in ((0, (0, 1)), (1, (0, 1)), (2, (0, 1, 2)), (3, (0, 1, 2))):
        same = x_s[:, :, :, i]
        assert (same == same[:, :, :1]).all() == (i < 2)
        assert len({x.sum().item() for x in same.flatten(0, 2)}) == {0: 6, 1: 6, 2: 18, 3: 18}[i]


def test_a_node_has_the_mean_of_its_leaves_advantages():
    method = alone(make())
    with spy(method, "rewards_of") as rewards:
        _, advantage = method.collect({"prompt": ["a", "b"]})
    r = rewards.results[0].view(2, 9)
    leaf = (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True)
    torch.testing.assert_close(advantage[:, 2].view(2, 9), leaf, atol=1e-4, rtol=1e-3)
    above = leaf.view(2, 3, 3).mean(2)
    torch.testing.assert_close(advantage[:, 0].view(2, 3, 3), above[:, :, None].expand(2, 3, 3), atol=1e-4, rtol=1e-3)


def test_by_hand():
    got = make(branching=2).node_advantages(T([[1.0, 3.0, 5.0, 7.0]]), 2)
    torch.testing.assert_close(got, T([[-2.0, 2.0]]) / T([1.0, 3.0, 5.0, 7.0]).std())


def test_equal_leaves_have_no_advantage():
    assert not make(branching=2).node_advantages(torch.full((1, 4), 1234.6), 2).any()


def test_one_child_is_refused():
    with pytest.raises(ValueError, match="branching is 1: give 2 or more"):
        make(branching=1, reward=Darkness())
