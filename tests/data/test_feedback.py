"""Converts of feedback against counts and sums by hand."""

import math

import numpy as np
import pytest

from lit_align.data.feedback import Pair, even_weights, good_images, pairs, scaled, total


def test_ranks_1_2_2_3_are_five_pairs_and_a_tie():
    found = pairs([-1, -2, -2, -3])
    assert found == [Pair(0, 1, 1), Pair(0, 2, 1), Pair(0, 3, 2), Pair(1, 2, 0), Pair(1, 3, 1), Pair(2, 3, 1)]


def test_the_better_image_comes_first_and_a_margin_ties():
    assert pairs([0.2, 0.5]) == [Pair(1, 0, pytest.approx(0.3))]
    assert pairs([0.0, 1.0, 3.0], margin=1.0) == [Pair(0, 1, 0), Pair(2, 0, 3), Pair(2, 1, 2)]
    assert pairs([math.nan, 1.0, 0.0]) == [Pair(1, 2, 1)]
    assert len(pairs(list(range(9)))) == 36


def test_dimensions_are_added_with_their_weights():
    scores = {"a": [1, 2, None], "b": [10, 0, 5], "c": [9, 9, 9]}
    assert total(scores, {"b": 0.5})[:2] == [5, 0] and total(scores, {"a": 2, "b": 0.1})[:2] == [3, 4]
    assert math.isnan(total(scores, {"a": 1})[2]) and total(scores, {"b": -1.0}) == [-10, 0, -5]


@pytest.mark.parametrize("mixed, label", [("good", 1.0), ("bad", 0.0), ("drop", None)])
def test_an_image_that_won_and_lost(mixed, label):
    labels = good_images([("a", "b"), ("b", "c"), ("a", "c")], mixed)
    assert labels.pop("b", None) == label and labels == {"a": 1.0, "c": 0.0}


def test_every_prompt_weighs_the_same():
    weight = even_weights(["p", "q", "p", "p", "q", "r"])
    assert weight.mean() == pytest.approx(1)
    assert [weight[[0, 2, 3]].sum(), weight[[1, 4]].sum(), weight[5]] == pytest.approx([2, 2, 2])
    assert scaled([1, 2, 3]).tolist() == [0.5, 1, 1.5] and isinstance(scaled([1]), np.ndarray)
