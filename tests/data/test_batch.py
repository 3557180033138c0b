"""Every batch of every shipped dataset holds the keys that data/batch.py defines."""

import json
from typing import get_type_hints

import published
import pytest
from data_parts import BLUE, RED, pick_a_pic
from datasets import Dataset

from lit_align.data.batch import ImageBatch, PairBatch, PromptBatch, RankingBatch
from lit_align.data.diffusion_db import DiffusionDB
from lit_align.data.hpd_v2 import HPDv2
from lit_align.data.open_image_preferences import OpenImagePreferences
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.prompts import Prompts
from lit_align.data.rankings import Rankings
from lit_align.data.rich_hf import RichHF18K
from lit_align.data.vision_prefer import VisionPrefer
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


def of_judged_images(name, cls, kind, **options):
    def make(folder):
        options["pick_a_pic"] = str(folder / "pick_a_pic") if name == "rich_hf" else None
        return cls(path=str(getattr(published, name)(folder)), resolution=8, **{k: v for k, v in options.items() if v}), kind

    return make


JUDGED = [
    of_judged_images("hpd_v2", HPDv2, PairBatch, weight_by="prompt", ties="keep"),
    of_judged_images("vision_prefer", VisionPrefer, RankingBatch, list_size=2),
    of_judged_images("open_image_preferences", OpenImagePreferences, PairBatch),
    of_judged_images("rich_hf", RichHF18K, ImageBatch),
    of_judged_images("diffusion_db", DiffusionDB, ImageBatch),
]


@pytest.mark.parametrize("make", [pairs, single_images, own_pairs, rankings, prompts, shapes, *JUDGED])
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
