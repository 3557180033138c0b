"""Every batch of every shipped dataset holds the keys that data/batch.py defines."""

import json
from typing import get_type_hints

import pytest
from data_parts import BLUE, RED, pick_a_pic
from datasets import Dataset

from lit_align.data.batch import ImageBatch, PairBatch, PromptBatch, RankingBatch
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.prompts import Prompts
from lit_align.data.rankings import Rankings
from lit_align.shapes.data import Shapes

OWN = {"index": "mine", "seed": 7.5, "file": "x", "image": ["a", "b"], "batch": {"k": 1}, "prompts": None}


def pairs(folder):
    return PickAPic(pick_a_pic(folder / "a.parquet", [1.0, 0.0]), resolution=8), PairBatch


def single_images(folder):
    return PickAPic(pick_a_pic(folder / "b.parquet", [1.0, 0.0]), resolution=8, binary=True), ImageBatch


def own_pairs(folder):
    row = OWN | {"prompt": "p", "win": RED, "lose": BLUE}
    Dataset.from_list([row, row]).to_parquet(folder / "c.parquet")
    return PreferencePairs(str(folder / "c.parquet"), resolution=8), PairBatch


def rankings(folder):
    row = OWN | {"prompt": "p", "images": [RED, BLUE], "scores": [1.0, 0.0]}
    Dataset.from_list([row, row]).to_parquet(folder / "d.parquet")
    return Rankings(str(folder / "d.parquet"), resolution=8), RankingBatch


def prompts(folder):
    (folder / "e.jsonl").write_text(f"{json.dumps(OWN | {'prompt': 'p'})}\n" * 2)
    return Prompts(str(folder / "e.jsonl")), PromptBatch


def shapes(folder):
    return Shapes(n=2, seed=1), ImageBatch


@pytest.mark.parametrize("make", [pairs, single_images, own_pairs, rankings, prompts, shapes])
def test_batches_hold_the_keys_that_are_written_down(tmp_path, make):
    data, kind = make(tmp_path)
    rows = data.load("train")
    batch = data.collate_rows([{"index": i, **rows[i]} for i in range(2)])
    assert set(batch) <= set(get_type_hints(kind)) and {"prompt", "index", "columns"} <= set(batch)
    assert len(batch["prompt"]) == 2 and all(isinstance(text, str) for text in batch["prompt"])
    assert all(isinstance(i, int) for i in batch["index"])
    assert set(batch["columns"]) == set(data.column_names("train"))
    if make in (own_pairs, rankings, prompts):  # a user's columns change nothing, whatever they are called
        assert batch["index"] == [0, 1] and batch["columns"] == {key: [cell] * 2 for key, cell in OWN.items()}
