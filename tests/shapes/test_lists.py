"""The stored lists as pairs."""

from lit_align.data.tables import read_table
from lit_align.shapes.lists import ShapesPairs


def test_pairs_are_all_of_a_list_that_differ_and_the_better_one_wins():
    data = ShapesPairs(resolution=16)
    pairs, lists = data.load("train"), read_table("checkpoints/shapes-sd/lists/train.parquet")
    first, scores = [row for row in pairs if row["index"] == 0], lists[0]["partial"]
    gaps = sorted(abs(a - b) for i, a in enumerate(scores) for b in scores[:i] if a != b)
    assert sorted(row["gap"] for row in first) == gaps and all(row["label"] == 1 for row in first)
    better = [lists[0]["images"][k] for k, s in enumerate(scores) if s == max(scores)]
    assert all(row["image_0"] in better or row["gap"] < max(gaps) for row in first)
    assert data.summary().startswith("train: 1,000 records")


def test_another_score_can_decide():
    assert len(ShapesPairs(dimensions={"red": 1.0}).load("train")) != len(ShapesPairs().load("train"))
