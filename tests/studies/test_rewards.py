"""The list of rewards."""

import pytest

from lit_align.studies.rewards import HEADS, PAGE, page, rewards, row


@pytest.fixture(scope="module")
def text():
    return page()


def test_the_page_is_up_to_date(text):
    assert PAGE.read_text() == text, "run python -m lit_align.studies.rewards"


@pytest.mark.parametrize("cls", [c for classes in rewards().values() for c in classes], ids=lambda c: c.__name__)
def test_every_reward_says_what_a_user_must_know(cls):
    """Artefact, scale, what it is blind to, and a test; whether it is differentiable."""
    told = dict(zip(HEADS, row(cls)))
    assert all(told[head] != "-" for head in ("artefact", "scale", "blind to", "test of the format"))
    assert told["gradient"] in ("yes", "no", "depends")
    assert told["licence"] != "-" or told["artefact"].startswith(("none", "its rewards'"))


def test_bases_and_parts_of_methods_are_left_out(text):
    found = {c.__name__ for classes in rewards().values() for c in classes}
    assert {"PickScore", "HPSv21", "ImageReward", "ShapesJudge", "WeightedSum"} <= found
    assert not found & {"Reward", "CLIPReward", "BLIPReward", "Surrogate"}
