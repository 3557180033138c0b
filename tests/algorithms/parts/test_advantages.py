"""Advantages, from rewards of all ranks."""

from types import SimpleNamespace

import pytest
import torch
from parts import T

from lit_align.algorithms.parts.advantages import (
    Group,
    LeaveOneOut,
    PerPrompt,
    PerReward,
    WinRate,
    local_advantages,
)


def test_per_prompt_statistics():
    """Buffer 4, min_count 2: a prompt seen once takes the batch's mean 3 and std 1.870829; memory lives across epochs."""
    a, b, c = 0, 1, 2
    tracker = PerPrompt(buffer_size=4, min_count=2)
    first = tracker(torch.tensor([a, b, a, c]), torch.tensor([1.0, 2.0, 3.0, 6.0]))
    torch.testing.assert_close(first, torch.tensor([-0.999999, -0.534522, 0.999999, 1.603567]), atol=1e-5, rtol=0)
    again = PerPrompt(buffer_size=4, min_count=2)
    again.load_state_dict(tracker.state_dict())
    for t in (tracker, again):
        second = t(torch.tensor([a, a, b, b]), torch.tensor([5.0, 7.0, 2.0, 4.0]))
        torch.testing.assert_close(second, torch.tensor([0.447213, 1.341640, -0.707106, 1.414212]), atol=1e-5, rtol=0)


def test_group_advantages():
    prompts = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    reward = torch.tensor([0.0, 1, 1, 0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 0])
    got = Group(global_std=True)(prompts, reward)
    want = torch.tensor([-1.250774, 1.250774, 1.250774, -1.250774, 0, 0, 0, 0, 0.625387, 0.625387, 0.625387, -1.876160])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    own = Group(global_std=False)(prompts, reward)
    assert own[:4].tolist() == pytest.approx([-0.9998, 0.9998, 0.9998, -0.9998], abs=1e-4) and not own[4:8].any()
    assert own.view(3, 4).sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("rank,want", [(0, [-3.0, -3.5]), (1, [3.0, 3.5])])
def test_a_rank_gets_the_advantages_of_its_own_samples_clipped(rank, want):
    """Rewards 0 and 1 on one rank, 3 and 5 on the other: each prompt's other sample lies there."""
    rewards = torch.tensor([[0.0, 1.0], [3.0, 5.0]])
    everyone = lambda x: rewards if x.is_floating_point() else torch.stack([x, x])
    method = SimpleNamespace(all_gather=everyone, advantage=LeaveOneOut(), max_advantage=3.5, global_rank=rank, trainer=SimpleNamespace(world_size=2))
    assert local_advantages(method, ["a", "b"], rewards[rank]).tolist() == want


def test_leave_one_out_is_the_distance_to_the_others_mean():
    prompt, reward = T([0, 1, 0, 1, 0, 2]), T([1.0, 5.0, 2.0, 7.0, 6.0, 9.0])
    want = T([1 - 4.0, 5 - 7.0, 2 - 3.5, 7 - 5.0, 6 - 1.5, 0.0])
    torch.testing.assert_close(LeaveOneOut()(prompt, reward), want)


def test_win_rates_forget_how_far_rewards_lie_apart():
    prompt = T([0, 0, 0, 1, 1, 1])
    reward = T([0.5, 0.5001, 9.0, 1.0, 1.0, 3.0])
    rates = T([0.0, 0.5, 1.0, 0.25, 0.25, 1.0])
    torch.testing.assert_close(WinRate()(prompt, reward), Group(global_std=False)(prompt, rates))


@pytest.mark.parametrize("make", [Group, lambda: Group(global_std=False), PerPrompt, LeaveOneOut, WinRate], ids=["global", "group", "prompt", "rest", "wins"])
@pytest.mark.parametrize("value", [1.0, 0.3, 20.95, -25.337, 1234.567])
def test_equal_rewards_have_advantage_zero(make, value):
    """In float32 the mean of 24 equal numbers is not that number, and a small std makes the rest large."""
    for n in (3, 8, 24, 64):
        assert not make()(torch.zeros(n, dtype=torch.long), torch.full((n,), value)).any()


@pytest.mark.parametrize("make", [Group, lambda: Group(global_std=False), LeaveOneOut, WinRate], ids=["global", "group", "rest", "wins"])
def test_one_group_of_equal_rewards_is_zero_beside_others(make):
    prompt, reward = torch.arange(3).repeat_interleave(24), torch.full((72,), 20.95)
    reward[48:] = torch.linspace(20, 22, 24)
    advantage = make()(prompt, reward)
    assert not advantage[:48].any() and (advantage[48:].sign() == (reward[48:] - reward[48:].mean()).sign()).all()


def test_prompts_that_were_not_seen_for_long_are_forgotten():
    tracker = PerPrompt(buffer_size=4, min_count=2, max_prompts=2)
    see = lambda *prompts: tracker(torch.tensor(prompts), torch.arange(len(prompts)).float())
    see(1, 1, 2, 2)
    see(1)
    see(3, 3)
    assert list(tracker.memory) == [1, 3] and list(tracker.memory[1]) == [0.0, 1.0, 0.0]
    again = PerPrompt(buffer_size=4, min_count=2, max_prompts=2)
    again.load_state_dict(tracker.state_dict())
    for t in (tracker, again):
        t(torch.tensor([4, 4]), torch.tensor([0.0, 1.0]))
        assert list(t.memory) == [3, 4]


# Several rewards


def gdpo(prompt, rewards, weights):
    """GDPO as its paper has it, prompt by prompt: normalised in the group, added up, normalised over the batch."""
    total = torch.zeros(len(prompt))
    for k, w in enumerate(weights):
        for p in prompt.unique():
            r = rewards[prompt == p, k]
            total[prompt == p] += w * (r - r.mean()) / (r.std(correction=0) + 1e-4)
    return (total - total.mean()) / (total.std(correction=0) + 1e-4)


def test_each_reward_is_normalised_in_its_group_before_they_are_added():
    g = torch.Generator().manual_seed(0)
    prompt = torch.arange(3).repeat(8)
    rewards = torch.stack([torch.rand(24, generator=g), 1000 * torch.rand(24, generator=g), -torch.rand(24, generator=g)], 1)
    torch.testing.assert_close(PerReward()(prompt, rewards), gdpo(prompt, rewards, [1, 1, 1]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(PerReward([2.0, 0.5, -1.0])(prompt, rewards), gdpo(prompt, rewards, [2, 0.5, -1]), atol=1e-4, rtol=1e-4)
    units = PerReward()(prompt, rewards * T([1e3, 1e-2, 7.0]))
    torch.testing.assert_close(units, PerReward()(prompt, rewards), atol=2e-2, rtol=1e-2)  # no unit counts


def test_rewards_that_a_sum_cannot_tell_apart_stay_apart():
    """The paper's example: (0, 1), (0, 2) and (1, 1) of two rewards in {0, 1}; a sum of 1 and of 2 look alike to GRPO."""
    prompt, both = T([0, 0, 1, 1]), T([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    summed = Group(global_std=False)(prompt, both.sum(1))
    assert summed[1].item() == pytest.approx(summed[3].item(), abs=1e-3)
    apart = PerReward()(prompt, both)
    assert apart[3].item() == pytest.approx(2 * apart[1].item(), abs=1e-3) and apart[1] > 0 > apart[0]


def test_a_lone_reward_or_too_few_weights_are_refused():
    with pytest.raises(ValueError, match="there is one: use MultiReward"):
        PerReward()(T([0, 0]), T([0.0, 1.0]))
    with pytest.raises(ValueError, match="PerReward has 1 weights, and there are 2 rewards"):
        PerReward([1.0])(T([0, 0]), T([[0.0, 1.0], [1.0, 0.0]]))


# Samples that could not be scored


@pytest.mark.parametrize("make", [Group, lambda: Group(global_std=False), PerPrompt, LeaveOneOut, WinRate, PerReward], ids=["global", "group", "prompt", "rest", "wins", "rewards"])
def test_a_sample_without_a_score_has_advantage_zero_and_is_in_no_statistics(make):
    names, reward = list("aabbaab"), T([1.0, 5.0, 2.0, 9.0, 4.0, 0.5, 3.0])
    if make is PerReward:
        reward = torch.stack([reward, reward.flip(0)], 1)
    masked, known = reward.clone(), T([0, 2, 3, 5, 6])
    masked[1] = torch.nan
    masked.view(7, -1)[4, -1] = torch.nan  # one of several is enough
    method = lambda: SimpleNamespace(all_gather=lambda x: x, advantage=make(), max_advantage=9.0, trainer=SimpleNamespace(world_size=1))
    got = local_advantages(method(), names, masked)
    assert not got[[1, 4]].any() and got.isfinite().all()
    want = local_advantages(method(), [names[i] for i in known], reward[known])
    torch.testing.assert_close(got[known], want)
    assert want.any()


def test_equal_rewards_of_several_have_advantage_zero():
    prompt, rewards = torch.arange(2).repeat_interleave(24), torch.full((48, 2), 20.95)
    rewards[24:, 0] = torch.linspace(20, 22, 24)
    advantage = PerReward()(prompt, rewards)
    assert not advantage[:24].any() and advantage[24:].abs().min() > 0
