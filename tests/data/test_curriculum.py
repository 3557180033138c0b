"""Pairs from easy to hard."""

from collections import Counter

import pytest
from data_parts import fit

from lit_align.data.order import Curriculum
from lit_align.data.pick_a_pic import PickAPic
from lit_align.shapes.lists import ShapesPairs

EASE = [0.1, 0.9, 0.5, 0.3, 0.8, 0.7]  # easiest first: 1 4 5 2 3 0


def order(seen=0, rank=0, ranks=1, stages=3, stage_batches=4, per_pass=20, batch=2, seed=1):
    return list(Curriculum(EASE, stages, stage_batches, batch, per_pass, lambda: seen, num_replicas=ranks, rank=rank, seed=seed))


def test_a_stage_takes_the_easiest_share_of_the_rows():
    rows = order()
    assert set(rows[:8]) == {1, 4} and set(rows[8:16]) == {1, 4, 5, 2} and set(rows[16:]) == set(range(6))
    assert len(rows) == 40 and order(seed=2) != rows


def test_within_a_stage_every_row_comes_as_often():
    assert Counter(order()[:8]) == {1: 4, 4: 4} and set(Counter(order()[8:16]).values()) == {2}
    assert set(Counter(order()[16:40]).values()) == {4}  # four times six


def test_ranks_share_a_batch_and_a_resumed_run_goes_on():
    both = [order(rank=r, ranks=2) for r in (0, 1)]
    together = [row for a, b in zip(*both) for row in (a, b)]
    assert together == order(batch=4)
    assert order(seen=7) == order()[14:] and order(seen=20)[:4] == order(per_pass=22)[40:]


def test_a_fit_sees_the_large_gaps_first(tmp_path):
    data = ShapesPairs(curriculum=(2, 5), batch_size=8, resolution=16)
    run, _ = fit(data, tmp_path, max_epochs=-1, max_steps=5)
    gaps = sorted(data.gaps)
    easy = gaps[-(len(gaps) // 2)]
    by_prompt = {}
    for row in data.train.select_columns(["index", "gap"]):
        by_prompt.setdefault(row["index"], []).append(row["gap"])
    assert len(data.gaps) == len(data.train) and len(run.seen) == 5
    assert all(max(by_prompt[index]) >= easy for batch in run.seen for index in batch)


@pytest.mark.parametrize("options,said", [
    ({"curriculum": (0, 5)}, r"data.curriculum is \[0, 5\]: give the number of stages"),
    ({"curriculum": (2, 5), "binary": True}, "with binary: false"),
    ({"curriculum": (2, 5), "streaming": True}, "curriculum: null"),
])  # fmt: skip
def test_what_has_no_order_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        PickAPic("train.parquet", **options)


def test_pairs_without_scores_have_no_order():
    with pytest.raises(ValueError, match="PickAPic has no scores to order pairs by: set --data.curriculum null"):
        PickAPic("checkpoints/shapes-sd/pairs/train.parquet", curriculum=(2, 5), resolution=16).load("train")
