"""Compared pairs of Shapes images."""

import re

import pytest
import torch
from parts import T

from lit_align.shapes.annotators import qualities
from lit_align.shapes.comparisons import Comparisons
from lit_align.shapes.judge import judge, see
from lit_align.shapes.scenes import is_held_out


def worth(scene, caption):
    found = qualities(scene, caption)
    return found["correct"] + 0.5 * found["partial"]


@pytest.fixture(scope="module")
def data():
    data = Comparisons(smoke=True, controlled=0.3)
    data.rows = data.load("train"), data.load("val")
    return data


def test_rows_are_what_an_annotator_prefers(data):
    batch = data.collate([{"index": i} for i in range(120)])
    again = data.collate([{"index": i} for i in range(120)])
    assert batch["prompt"] == again["prompt"] and torch.equal(batch["win"], again["win"])
    found, words = [], set()
    for text, win, lose in zip(batch["prompt"], see(batch["win"]), see(batch["lose"])):
        word, _, caption = text.rpartition(". ")
        words.add(word)
        assert not is_held_out(caption)
        gap = worth(win, caption) - worth(lose, caption)
        found.append(-gap if word == "bad" else gap)
    assert words == {"", "good", "bad"}
    assert (T(found) > 0).float().mean() > 0.95  # blur, and objects that overlap, make the judge err now and then


def test_a_mirrored_row_is_as_true_as_it_was(data):
    rows = [data._compared(i) for i in range(400)]
    sides = [i for i, (text, _, mirror) in enumerate(rows) if re.fullmatch("a .*(left|right) of .*", text)]
    batch = data.collate([{"index": i} for i in sides])
    right = [
        worth(win, text) > worth(lose, text)
        for text, win, lose in zip(batch["prompt"], see(batch["win"]), see(batch["lose"]))
    ]
    mirrored = [rows[i][2] for i in sides]
    assert sum(ok for ok, m in zip(right, mirrored) if m) > 0.9 * sum(mirrored) > 5
    i = next(i for i, (_, pair, mirror) in enumerate(rows) if mirror and isinstance(pair[0], int))
    torch.testing.assert_close(data.collate([{"index": i}])["win"][0], data.samples[rows[i][1][0]].flip(-1) / 255)


def test_validation_shows_samples_that_training_does_not(data):
    rows = data.rows[1]
    assert len(rows) and all(min(row["a"], row["b"]) >= data.seen for row in rows)
    batch = data.collate([{"index": i, **row} for i, row in enumerate(rows)])
    assert judge(batch["win"], batch["prompt"]).all() and not judge(batch["lose"], batch["prompt"]).any()
    shown = set()
    for i in range(400):
        shown |= {x for x in data._compared(i)[1] if isinstance(x, int)}
    assert shown and max(shown) < data.seen
