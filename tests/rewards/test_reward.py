"""Rewards that see further columns of the data, rewards of several numbers, and judging in minibatches."""

from collections import Counter

import numpy as np
import pytest
import torch
from parts import Darkness, T, prompts, tiny, trainer
from preferences import attached, still

from lit_align.algorithms.reward_gradient.draft import DRaFT
from lit_align.algorithms.reward_modeling.bradley_terry import BradleyTerry
from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.multi_reward import MultiReward, WeightedSum
from lit_align.rewards.reward import Reward, components, judge


class Target(Reward):
    """Minus the distance of the mean to the column `target`, in the unit that the column `unit` says (default 1)."""

    name, differentiable = "target", True

    def forward(self, images, prompts, target, unit=None):
        unit = T(unit) if unit else torch.ones(len(images))
        return -(images.mean((1, 2, 3)) - T(target)).abs() * unit


class Channels(Reward):
    """The mean of each colour."""

    name, differentiable, names = "channels", True, ("red", "green", "blue")

    def forward(self, images, prompts):
        return images.mean((2, 3))


class Given(Reward):
    """Whatever it is given."""

    name, differentiable = "given", False

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images, prompts):
        return self.value


def flat(*values):
    return T(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


class Decoder:
    """Latents are images; counts how many it is given at once."""

    def __init__(self):
        self.sizes, self.calls = [], Counter()

    def decode(self, latents):
        self.sizes.append(len(latents))
        return latents


ROWS = {"prompt": ["a", "b", "c"], "columns": {"target": [0.1, 0.5, 0.2], "unit": [1.0, 2.0, 10.0], "skill": ["x", "y", "z"]}}


def test_a_reward_gets_the_columns_it_names_in_the_batchs_order():
    assert Target().columns == {"target": True, "unit": False} and Darkness().columns == {}
    got = components(Target(), flat(0.1, 0.2, 0.3), ROWS)
    torch.testing.assert_close(got, T([0.0, -0.6, -1.0]))
    without = ROWS | {"columns": {"target": ROWS["columns"]["target"]}}
    torch.testing.assert_close(components(Target(), flat(0.1, 0.2, 0.3), without), T([0.0, -0.3, -0.1]))


@pytest.mark.parametrize("columns,there", [({"skill": ["x"], "unit": [1.0]}, "skill, unit"), ({}, "none besides the prompt")])
def test_a_column_that_the_data_lacks_is_named(columns, there):
    with pytest.raises(ValueError, match=f"the reward target needs the column `target`; the data has {there}: add it"):
        components(Target(), flat(0.1), {"prompt": ["a"], "columns": columns})


def test_a_method_hands_its_rewards_the_rows_of_their_samples(tmp_path):
    """In training and in validation, whatever else the file holds."""
    sampler = Sampler(2, 1.0)
    method = DRaFT(policy=still(), reward=Target(), rollout=sampler, sampler=sampler, rewards=[Target(), Channels()], optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    data = prompts(2, columns={"target": [0.1, 0.9], "skill": ["x", "y"]})
    t = trainer(tmp_path)
    t.fit(method, data, data)
    batch = next(iter(data))
    image = method.sample(batch)["image"]
    want = -(image.mean((1, 2, 3)) - T([0.1, 0.9])).abs()
    torch.testing.assert_close(t.callback_metrics["val/reward/target"], want.mean(), atol=1e-5, rtol=1e-5)
    for channel, value in zip(("red", "green", "blue"), image.mean((0, 2, 3))):
        torch.testing.assert_close(t.callback_metrics[f"val/reward/channels/{channel}"], value, atol=1e-5, rtol=1e-5)
    turned = batch | {"columns": {"target": [0.9, 0.1]}}
    assert not torch.allclose(method.sample(turned)["scores"]["target"], want)


def test_a_reward_model_that_needs_columns_learns_from_its_rows():
    class Learnt(Target):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(T(2.0))

        def forward(self, images, prompts, target, unit=None):
            return self.w * super().forward(images, prompts, target, unit)

    method = attached(BradleyTerry(reward=Learnt()))
    batch = {"prompt": ["a", "b"], "index": [0, 1], "win": flat(0.1, 0.6), "lose": flat(0.3, 0.2), "columns": {"target": [0.1, 0.5]}}
    gap = T([0.0 + 0.2, -0.1 + 0.3]) * 2
    torch.testing.assert_close(method.batch_loss(batch), torch.log1p(torch.exp(-gap)).mean())


# The shape of a reward: what is wrong is one sentence


@pytest.mark.parametrize("value,gave", [
    ([0.1, 0.2], "a list of length 2"),
    ((T([0.1, 0.2]), {}), "a tuple of length 2"),
    ({"r": T([0.1, 0.2])}, "a dict of length 1"),
    (np.array([0.1, 0.2]), r"a ndarray of shape \(2,\)"),
    (T(0.1), r"a Tensor of shape \(\)"),
    (T([0.1]), r"a Tensor of shape \(1,\)"),
    (T([[0.1, 0.2], [0.3, 0.4]]), r"a Tensor of shape \(2, 2\)"),
    (0.1, "a float"),
    (None, "a NoneType"),
], ids=["list", "tuple", "dict", "numpy", "scalar", "short", "wide", "float", "none"])  # fmt: skip
def test_a_reward_of_another_shape_is_refused_in_one_sentence(value, gave):
    want = rf"the reward given must give one number per image, a tensor of shape \(2,\); it gave {gave}"
    for reward in (Given(value), MultiReward({"dark": Darkness(), "given": Given(value)}), WeightedSum({"given": Given(value)})):
        with pytest.raises(ValueError, match=want) as error:
            components(reward, flat(0.1, 0.2), {"prompt": ["a", "b"]})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [T([[1.0], [0.0]]), T([True, False]), T([1, 0]), T([1.0, 0.0]).half(), T([1.0, 0.0]).double()], ids=["column", "bool", "long", "half", "double"])
def test_columns_and_other_numbers_become_float32(value):
    got = components(Given(value), flat(0.1, 0.2), {"prompt": ["a", "b"]})
    assert got.dtype == torch.float32 and got.tolist() == [1.0, 0.0]


# Several numbers


def test_a_reward_of_several_numbers_stays_apart():
    images = torch.rand(2, 3, 4, 4)
    got = components(Channels(), images, {"prompt": ["a", "b"]})
    torch.testing.assert_close(got, images.mean((2, 3)))
    with pytest.raises(ValueError, match=r"the reward channels must give .* it gave a Tensor of shape \(2, 2\)"):
        components(Channels(), images[:, :2], {"prompt": ["a", "b"]})


def test_several_rewards_stand_side_by_side_each_with_its_columns():
    several = MultiReward({"near": Target(), "dark": Darkness()})
    assert several.columns == {"target": True, "unit": False} and several.names == ("near", "dark")
    got = components(several, flat(0.1, 0.2, 0.3), ROWS)
    torch.testing.assert_close(got, T([[0.0, 0.9], [-0.6, 0.8], [-1.0, 0.7]]))
    with pytest.raises(ValueError, match="the reward multi_reward needs the column `target`"):
        components(several, flat(0.1), {"prompt": ["a"]})


# Judging in minibatches


def total():
    return WeightedSum({"near": Target(), "dark": Darkness()}, {"near": 2.0, "dark": -1.0})


@pytest.mark.parametrize("make", [Target, Channels, lambda: MultiReward({"near": Target(), "dark": Darkness()}), total], ids=["one", "channels", "side by side", "weighted sum"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_minibatches_give_what_one_call_gives(make, size):
    """Statistics of a weighted sum are those of all that is compared, not of a minibatch."""
    images, policy = torch.rand(3, 3, 4, 4), Decoder()
    whole, parts = make(), make()
    want = judge(whole, Decoder(), images, ROWS)
    got = judge(parts, policy, images, ROWS, size)
    torch.testing.assert_close(got, want)
    assert policy.sizes == {1: [1, 1, 1], 2: [2, 1], 5: [3]}[size] and policy.calls["reward_calls"] == 3
    for _ in range(2):  # and the statistics go on alike
        torch.testing.assert_close(judge(parts, policy, images / 2, ROWS, size), judge(whole, policy, images / 2, ROWS))
    assert len(got) == 3


def test_a_weighted_sum_in_minibatches_is_standardised_over_the_whole():
    images = flat(0.1, 0.2, 0.6)
    got = judge(total(), Decoder(), images, ROWS, 1)
    near, dark = T([0.0, -0.6, -4.0], dtype=torch.float64), T([0.9, 0.8, 0.4], dtype=torch.float64)
    z = lambda x: (x - x.mean()) / x.std(correction=0)
    torch.testing.assert_close(got, (2 * z(near) - z(dark)).float())


# Frozen


class Dropping(Reward):
    """A linear reward with dropout, which notes the number format that it is asked in."""

    name, differentiable = "dropping", True

    def __init__(self):
        super().__init__()
        self.layer, self.dropout, self.asked = torch.nn.Linear(3, 1), torch.nn.Dropout(0.5), []

    def forward(self, images, prompts):
        score = self.layer(self.dropout(images.mean((2, 3)))).squeeze(1)
        self.asked.append((images.dtype, score.dtype, self.training))
        return score


def test_a_frozen_reward_scores_in_float32_under_autocast_and_a_trained_one_in_the_runs_precision():
    reward, images = Dropping().eval(), torch.rand(2, 3, 4, 4)
    right = reward.requires_grad_(False)(images, ["", ""])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reward(images, ["", ""]), right)
        reward(images.bfloat16(), ["", ""])
        reward.requires_grad_(True)(images, ["", ""])
    assert [a[:2] for a in reward.asked[1:]] == [(torch.float32, torch.float32)] * 2 + [(torch.float32, torch.bfloat16)]


def test_a_fit_leaves_rewards_frozen_without_dropout_and_out_of_the_checkpoint(tmp_path):
    """In 16 bits, and where training mode is turned on, as older versions of Lightning do."""

    class Loud(DRaFT):
        def on_train_batch_start(self, *args):
            self.train()
            super().on_train_batch_start(*args)

    sampler, train, val = Sampler(2, 1.0), Dropping(), Dropping()
    method = Loud(policy=tiny(), reward=train, rollout=sampler, sampler=sampler, rewards=[val], optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = [p.clone() for p in train.parameters()]
    trainer(tmp_path, precision="bf16-mixed").fit(method, prompts(2, 2), prompts(2))
    assert len(train.asked) == 2 and set(train.asked + val.asked) == {(torch.float32, torch.float32, False)}
    assert all(torch.equal(a, b) for a, b in zip(before, train.parameters()))
    assert method.state_dict() and not any("reward" in name for name in method.state_dict())
