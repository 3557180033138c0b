"""Rewards made of several: the least, the mean less the disagreement, one for each kind of row."""

import pytest
import torch
from parts import BlackBox, Darkness, T

from lit_align.rewards.ensemble import Ensemble
from lit_align.rewards.minimum import Minimum
from lit_align.rewards.multi_reward import MultiReward, WeightedSum
from lit_align.rewards.reward import Reward, components
from lit_align.rewards.routed import Routed


class Pixel(Reward):
    """A pixel of the image, times a unit."""

    differentiable = True

    def __init__(self, i, unit=1.0, name="pixel"):
        super().__init__()
        self.i, self.unit, self.name = i, unit, name

    def forward(self, images, prompts):
        return self.unit * images.flatten(1)[:, self.i]


class Sometimes(Pixel):
    """Could not score what is black; or, if it does not mask, is broken there."""

    def __init__(self, i, masks=True):
        super().__init__(i)
        self.masks = masks

    def forward(self, images, prompts):
        r = super().forward(images, prompts)
        return torch.where(r == 0, torch.nan, r)


class Target(Pixel):
    def forward(self, images, prompts, target, note=None):
        return super().forward(images, prompts) - T(target)


def pixels(*rows):
    """Images whose first pixels are given."""
    x = torch.zeros(len(rows), 3, 2, 2)
    for i, row in enumerate(rows):
        x[i].view(-1)[: len(row)] = T(row)
    return x


def three(**units):
    return {name: Pixel(i, unit) for i, (name, unit) in enumerate(units.items())}


def test_the_minimum_is_the_worst_off_annotators_and_only_it_gets_gradient():
    images = pixels([0.1, 0.5, 0.3], [0.9, 0.2, 0.4]).requires_grad_()
    score = Minimum(three(a=1.0, b=1.0, c=1.0))
    got = score(images, ["", ""])
    assert got.tolist() == pytest.approx([0.1, 0.2]) and score.differentiable
    (grad,) = torch.autograd.grad(got.sum(), images)
    assert grad.flatten(1)[:, :3].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert set(score.latest) == {"a", "b", "c"} and score.latest["b"].tolist() == [0.5, pytest.approx(0.2)]


def test_a_normalised_minimum_compares_standard_deviations():
    images, score = pixels([0.0, 0.4], [1.0, 0.2], [0.5, 0.0]), Minimum(three(a=100.0, b=0.01), normalise=True)
    z = lambda x: (x - x.mean()) / x.std(correction=0)
    torch.testing.assert_close(score(images, [""] * 3), torch.minimum(z(T([0.0, 1.0, 0.5])), z(T([0.4, 0.2, 0.0]))))


def test_an_ensemble_is_its_mean_less_k_standard_deviations():
    images, score = pixels([0.1, 0.3, 0.8], [0.5, 0.5, 0.5]), Ensemble(three(a=1.0, b=1.0, c=1.0), k=2.0)
    std = (((0.1 - 0.4) ** 2 + (0.3 - 0.4) ** 2 + (0.8 - 0.4) ** 2) / 3) ** 0.5
    got = components(score, images, {"prompt": ["", ""]})
    assert got.shape == (2, 3)
    assert score.combine(got).tolist() == pytest.approx([0.4 - 2 * std, 0.5], abs=1e-5)
    assert score.latest["std"].tolist() == pytest.approx([std, 0.0], abs=1e-5)
    disagreement = Ensemble(three(a=1.0, b=1.0, c=1.0), k=0.0)(images, ["", ""])
    assert disagreement.tolist() == pytest.approx([0.4, 0.5])
    with pytest.raises(ValueError, match="Ensemble has 1 reward: name 2 or more"):
        Ensemble({"a": Darkness()})


def test_an_ensemble_that_agrees_has_the_gradient_of_its_mean():
    images = pixels([0.5, 0.5]).requires_grad_()
    (grad,) = torch.autograd.grad(Ensemble(three(a=1.0, b=1.0), k=3.0)(images, [""]).sum(), images)
    assert grad.flatten()[:2].tolist() == [0.5, 0.5]
    spread = pixels([0.2, 0.6]).requires_grad_()
    (grad,) = torch.autograd.grad(Ensemble(three(a=1.0, b=1.0), k=3.0)(spread, [""]).sum(), spread)
    assert grad.flatten()[:2].tolist() == pytest.approx([0.5 + 1.5, 0.5 - 1.5], abs=1e-4)  # towards agreement


ROWS = {"prompt": ["p0", "p1", "p2", "p3"], "columns": {"task": ["b", "a", "b", "a"], "target": [0.1, None, 0.3, None]}}


def test_a_row_is_scored_by_the_reward_that_it_names():
    images = pixels([0.0, 0.7], [0.1, 0.0], [0.0, 0.9], [0.2, 0.0]).requires_grad_()
    routed = Routed({"a": Pixel(0, 10.0), "b": Target(1)})
    assert routed.columns == {"target": True, "note": False, "task": True} and routed.differentiable
    got = components(routed, images, ROWS)
    assert got.tolist() == pytest.approx([0.6, 1.0, 0.6, 2.0])
    (grad,) = torch.autograd.grad(got.sum(), images)
    assert grad.flatten(1)[:, :2].tolist() == [[0, 1], [10, 0], [0, 1], [10, 0]]
    only_a = {"prompt": ["x"], "columns": {"task": ["a"], "target": [None]}}
    assert components(routed, images[1:2], only_a).tolist() == pytest.approx([1.0])


def test_each_part_sees_its_own_rows():
    a, b = BlackBox(), BlackBox()
    components(Routed({"a": a, "b": b}), torch.rand(4, 3, 2, 2), ROWS)
    assert a.asked == ["p1", "p3"] and b.asked == ["p0", "p2"]
    numbers = Routed({"1": a, "2": b}, column="kind")
    components(numbers, torch.rand(2, 3, 2, 2), {"prompt": ["x", "y"], "columns": {"kind": [2, 1]}})
    assert a.asked[-1] == "y" and b.asked[-1] == "x"


@pytest.mark.parametrize("value", ["c", None, ""])
def test_a_row_that_names_no_reward_is_refused(value):
    rows = {"prompt": ["p0", "p1"], "columns": {"task": ["a", value]}}
    with pytest.raises(ValueError, match=f"the row 'p1' has task '{value}'; Routed has rewards for a, b"):
        components(Routed({"a": Darkness(), "b": Darkness()}), torch.rand(2, 3, 2, 2), rows)
    with pytest.raises(ValueError, match="the reward routed needs the column `task`"):
        components(Routed({"a": Darkness()}), torch.rand(1, 3, 2, 2), {"prompt": ["p"]})


def test_a_part_with_statistics_over_all_images_is_refused():
    with pytest.raises(ValueError, match="rewards.a of Routed has statistics over all images"):
        Routed({"a": MultiReward({"x": WeightedSum({"y": Darkness()})})})
    Routed({"a": WeightedSum({"y": Darkness()}, normalise=False)})


@pytest.mark.parametrize("make", [
    lambda part: MultiReward({"a": part, "b": Pixel(1)}),
    lambda part: WeightedSum({"a": part, "b": Pixel(1)}),
    lambda part: Minimum({"a": part, "b": Pixel(1)}),
    lambda part: Ensemble({"a": part, "b": Pixel(1)}),
    lambda part: Routed({"a": part, "b": Pixel(1)}),
])  # fmt: skip
def test_what_one_part_could_not_score_is_masked_and_what_another_breaks_is_not(make):
    images = pixels([0.5, 0.1], [0.0, 0.2], [0.3, 0.4])
    rows = {"prompt": ["x", "y", "z"], "columns": {"task": ["a", "a", "b"]}}
    combined = make(Sometimes(0))
    got = combined.combine(components(combined, images, rows))
    assert combined.masks and got.view(3, -1).isnan().any(1).tolist() == [False, True, False]
    combined = make(Sometimes(0, masks=False))
    assert not combined.masks
    with pytest.raises(FloatingPointError, match="the reward pixel is nan for 'y'"):
        components(combined, images, rows)


def test_what_could_not_be_scored_is_in_no_statistics():
    images = pixels([0.5, 0.1], [0.0, 0.9], [0.3, 0.4])
    got = WeightedSum({"a": Sometimes(0), "b": Pixel(1)})(images, ["x", "y", "z"])
    torch.testing.assert_close(got[[0, 2]], T([1.0 - 1.0, -1.0 + 1.0]))  # of the two that were scored
