import random

import pytest
import torch

from lit_align.shapes.annotators import Annotator, matched, qualities
from lit_align.shapes.scenes import SKILLS, Object, parse, random_caption, random_scene

RED, BLUE = Object("red", "circle", 20, 20, 7), Object("blue", "square", 45, 45, 12)


def test_partial_credit_counts_each_object_once():
    two = parse("a red circle left of a blue square")
    assert matched([RED, BLUE], two) == 1 and matched([BLUE], two) == 0.5 and matched([RED, RED], two) == 0.5
    assert matched([], two) == 0 and matched([RED, BLUE, BLUE, BLUE], two) == 0.5
    rng = random.Random(0)
    for _ in range(300):
        caption = random_caption(rng.choice(SKILLS), rng)
        assert matched(random_scene(caption, rng), caption) == 1


def test_a_bias_is_a_weight():
    prompt = "a circle"
    red, blue = (qualities([o], prompt) for o in (RED, RED._replace(color="blue")))
    biased = Annotator({"correct": 1.0, "red": 0.5})
    assert biased.utility([red, blue]).tolist() == [1.5, 1.0]
    assert Annotator().prefer(*Annotator().utility([red, blue]).split(1)).item() == 0.5  # both are right: a tie


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_choices_are_bradley_terrys(temperature):
    annotator = Annotator(temperature=temperature)
    n = 20_000
    share = annotator.prefer(torch.ones(n), torch.zeros(n)).mean().item()
    assert share == pytest.approx(1 / (1 + 2.718281828 ** (-1 / temperature)), abs=0.01)
