import random

import pytest
import torch

from lit_align.shapes.annotators import Annotator, matched, qualities
from lit_align.shapes.pairs import make_pairs
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


def lists(n):
    return [{"prompt": f"p{i}", "images": [b"a", b"b", b"c", b"d"], "correct": [0.0, 1.0, 0.0, 1.0], "red": [1.0, 0, 0, 0]} for i in range(n)]


def test_pairs_match_best_with_worst_and_leave_ties_out():
    rows = list(make_pairs(lists(50), [Annotator()], "m", seed=0))
    assert len(rows) == 100
    for r in rows:
        winner = r["jpg_0"] if r["label_0"] == 1 else r["jpg_1"]
        assert winner in (b"b", b"d") and {r["jpg_0"], r["jpg_1"]} in ({b"b", b"a"}, {b"b", b"c"}, {b"d", b"a"}, {b"d", b"c"})
    assert 0.3 < sum(r["label_0"] for r in rows) / 100 < 0.7  # the winner's side says nothing


def test_two_annotators_disagree_and_labels_flip():
    rows = list(make_pairs(lists(40), [Annotator(), Annotator({"red": 1.0})], "m", seed=0))
    wins = lambda user: {r["jpg_0"] if r["label_0"] == 1 else r["jpg_1"] for r in rows if r["user_id"] == user}
    assert wins(0) == {b"b", b"d"} and wins(1) == {b"a"}
    clean, flipped = (list(make_pairs(lists(500), [Annotator()], "m", 0, flip=f)) for f in (0.0, 0.3))
    assert sum(a["label_0"] != b["label_0"] for a, b in zip(clean, flipped)) / len(clean) == pytest.approx(0.3, abs=0.04)
