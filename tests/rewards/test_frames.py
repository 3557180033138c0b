"""Frames: which frames it scores and how, against sums by hand; and what is refused."""

import math

import pytest
import torch
from parts import Darkness, Level, T

from lit_align.policies.adapters import Frozen
from lit_align.policies.wan import Wan
from lit_align.rewards.frames import Frames
from lit_align.rewards.multi_reward import WeightedSum
from lit_align.rewards.pairwise import PairwiseReward
from lit_align.rewards.reward import Reward, components, judge

GREYS = T([[0.0, 0.1, 0.2, 0.3, 0.4], [1.0, 0.6, 0.5, 0.2, 0.0]])  # (N, F)


def videos():
    return GREYS[:, :, None, None, None].expand(2, 5, 3, 4, 4).clone()


def rows(**columns):
    return {"prompt": ["a", "b"], "columns": columns}


@pytest.mark.parametrize("options,want", [
    ({"frames": 3}, [0.8, 0.5]), ({"frames": 1}, [0.8, 0.5]), ({"frames": [1, -1]}, [0.75, 0.7]), ({"frames": 5, "over": "min"}, [0.6, 0.0]), ({"frames": 9}, [0.8, 0.54]),
])  # fmt: skip
def test_the_mean_or_the_least_over_chosen_frames(options, want):
    torch.testing.assert_close(components(Frames(Darkness(), **options), videos(), rows()), T(want))


def test_the_attenuation_is_that_of_instruct_video():
    """exp(-lambda |i - F / 2|) in front of each frame's score, and the mean over the frames."""
    got = Frames(Darkness(), frames=5, attenuation=1.0)(videos(), ["a", "b"])
    weights = T([math.exp(-abs(i - 2.5)) for i in range(5)])
    torch.testing.assert_close(got, (weights * (1 - GREYS)).mean(1))


def test_random_frames_are_one_of_each_segment():
    torch.manual_seed(0)
    drawn = [tuple(Frames(Darkness(), frames=4, random=True).chosen(16)) for _ in range(200)]
    assert all([i // 4 for i in one] == [0, 1, 2, 3] for one in drawn) and len(set(drawn)) > 100


def test_gradient_reaches_the_chosen_frames_alone():
    x = videos().requires_grad_()
    reward = Frames(Darkness(), frames=[0, 3])
    reward(x, ["a", "b"]).sum().backward()
    assert reward.differentiable and x.grad[:, [0, 3]].abs().min() > 0 and x.grad[:, [1, 2, 4]].abs().max() == 0


class ByColumn(Reward):
    name, differentiable, masks = "by_column", False, True

    def forward(self, images, prompts, scale):
        return T(scale) * images.mean((1, 2, 3))


class Pairs(PairwiseReward):
    name = "brighter"

    def compare(self, first, second, prompts):
        return (first.mean((1, 2, 3)) > second.mean((1, 2, 3))).float()


def test_columns_masks_and_comparisons_go_through():
    reward = Frames(ByColumn(), frames=[0, 1])
    assert reward.columns == {"scale": True} and reward.masks and not reward.together
    torch.testing.assert_close(components(reward, videos(), rows(scale=[2.0, float("nan")])), T([0.1, float("nan")]), equal_nan=True)
    assert Frames(Pairs(), frames=[0, 4]).together
    same = ["a", "a"]  # the first frames and the last frames are compared with one another
    torch.testing.assert_close(Frames(Pairs(), frames=[0, 4])(videos(), same), T([0.5, 0.5]))


def test_a_reward_of_images_is_refused_for_videos_by_name():
    with pytest.raises(ValueError, match=r"the reward darkness scores images, and the policy makes videos: put it into Frames.*class_path: Darkness"):
        components(Darkness(), videos(), rows())
    mixed = WeightedSum({"a": Frames(Darkness()), "b": Darkness()}, normalise=False)
    with pytest.raises(ValueError, match="the reward weighted_sum scores images"):
        components(mixed, videos(), rows())
    both = WeightedSum({"a": Frames(Darkness()), "b": Level()}, normalise=False)
    assert both.videos and both(videos(), ["a", "b"]).shape == (2,)
    with pytest.raises(ValueError, match=r"Frames scores videos \(N, F, 3, H, W\)"):
        Frames(Darkness())(videos()[:, 0], ["a", "b"])


@pytest.mark.parametrize("options,said", [
    ({"frames": 0}, "give 1 or more"), ({"over": "min", "attenuation": 1.0}, "leave attenuation out"), ({"frames": [0], "random": True}, "give frames as that number"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Frames(Darkness(), **options)
    with pytest.raises(ValueError, match="set its normalise to false"):
        Frames(WeightedSum({"a": Darkness()}))
    with pytest.raises(ValueError, match="asks for frame 7, and the videos have 5"):
        Frames(Darkness(), frames=[7])(videos(), ["a", "b"])


def test_decoded_videos_are_judged():
    policy = Wan("tiny", Frozen(), num_frames=5, max_sequence_length=8)
    latents = torch.randn(2, *policy.latent_shape)
    images = policy.decode(latents)
    got = judge(Frames(Darkness(), frames=[0, 4]), policy, latents, rows())
    torch.testing.assert_close(got, (1 - images[:, [0, 4]].mean((2, 3, 4))).mean(1))
