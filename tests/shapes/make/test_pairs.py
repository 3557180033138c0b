"""Preference pairs from lists of samples."""

import pytest
from datasets import Dataset

from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.tables import read_table
from lit_align.shapes.annotators import Annotator
from lit_align.shapes.make.pairs import main, make_pairs


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


def test_the_command_makes_the_shipped_pairs(tmp_path, shapes_sd):
    """From the first shipped lists, pair by pair."""
    few = tmp_path / "shapes-sd/lists/train.parquet"
    few.parent.mkdir(parents=True)
    Dataset.from_list(list(read_table(f"{shapes_sd}/lists/train.parquet").select(range(60)))).to_parquet(few)
    main(["--lists", str(few), "--out", str(tmp_path / "new/pairs.parquet")])
    made, shipped = read_table(str(tmp_path / "new/pairs.parquet")), read_table(f"{shapes_sd}/pairs/train.parquet")
    assert len(made) > 30 and list(made) == list(shipped.select(range(len(made))))
    assert len(PickAPic(str(tmp_path / "new/pairs.parquet"), resolution=64).load("train")) == len(made)
