"""What the datasets of judged images share: held-out prompts, weights, single images, refusals."""

import numpy as np
import published
import pytest
from data_parts import BLUE, RED
from datasets import Dataset

from lit_align.data.hpd_v1 import HPDv1
from lit_align.data.hpd_v3 import HPDv3
from lit_align.data.image_reward_db import ImageRewardDB
from lit_align.data.mhp import MHP
from lit_align.data.open_image_preferences import OpenImagePreferences
from lit_align.data.pick_a_pic import PickAPic, row


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def stored(tmp_path, prompts, labels=None, name="train"):
    rows = [row(p, RED, BLUE, y, "m", i, 0) for i, (p, y) in enumerate(zip(prompts, labels or [1.0] * len(prompts)))]
    Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    return str(tmp_path)


def test_pairs_are_held_out_by_prompt(tmp_path):
    prompts = [f"{'A  Cat' if i % 2 else 'a cat'} {i // 4}" for i in range(400)]  # 100 prompts in two spellings
    data = PickAPic(stored(tmp_path, prompts), val_share=0.2, resolution=8)
    train, val = data.load("train"), data.load("val")
    plain = lambda rows: {" ".join(p.lower().split()) for p in rows["prompt"]}
    assert len(train) + len(val) == 400 and not plain(train) & plain(val) and len(plain(train) | plain(val)) == 100
    assert 8 <= len(plain(val)) <= 34  # 20 of 100: 3 standard deviations
    assert data.summary() == f"train: 400 pairs, {len(val)} of prompts of the other split, {len(train)} kept; val: 400 pairs, {len(train)} of prompts of the other split, {len(val)} kept"  # fmt: skip
    longer = PickAPic(stored(tmp_path, ["new", *prompts]), val_share=0.2, resolution=8).load("val")
    assert plain(longer) - {"new"} == plain(val)  # whatever else the file holds


def test_every_prompt_weighs_the_same_over_the_kept_pairs(tmp_path):
    prompts, labels = ["p", "p", "p", "q", "q"], [1.0, 0.0, 0.5, 1.0, 0.5]
    data = PickAPic(stored(tmp_path, prompts, labels), weight_by="prompt", resolution=8)
    rows = data.load("train")
    batch = data.collate([rows[i] for i in range(3)])
    assert batch["prompt"] == ["p", "p", "q"] and batch["weight"].tolist() == [0.75, 0.75, 1.5]


def test_a_gap_of_scores_weighs_a_pair(tmp_path):
    published.image_reward_db(tmp_path)
    data = ImageRewardDB(path=str(tmp_path), size="1k", weight_by="gap", resolution=8)
    weight = np.array(data.load("train")["weight"][:5])
    assert weight / weight[0] == pytest.approx([1, 1, 2, 1, 1])  # ranks 1, 2, 2, 3


def test_images_are_not_copied(tmp_path):
    """Rows are selected, repeated and renamed by their numbers."""
    rows = [one | {"label_0": y} for one, y in zip(published.pick_a_pic_rows(4), (1.0, 0.0, 0.5, 1.0))]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    rows = PickAPic(str(tmp_path), binary=True, resolution=8).load("train")
    assert rows._indices is not None and len(rows) == 6 and rows._data.num_rows == 8
    pairs = PickAPic(str(tmp_path), weight_by="prompt", resolution=8).load("train")
    assert pairs._indices is not None and len(pairs) == 3 and pairs._data.num_rows == 4


@pytest.mark.parametrize("options, said", [
    ({"binary": True, "val_share": 0.1}, "binary labels are counted over all training rows"),
    ({"val_share": 0.1, "val_split": "test"}, "data.val_share is 0.1: give a share below 1, and no data.val_split"),
    ({"val_share": 1.5}, "data.val_share is 1.5: give a share below 1"),
    ({"streaming": True, "weight_by": "prompt"}, "the rows of a stream cannot be counted before training"),
    ({"streaming": True, "images": "folder"}, "a stream cannot be joined with a folder"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        PickAPic("x", **options)


@pytest.mark.parametrize("cls, options, said", [
    (HPDv1, {"ties": "keep"}, "HPDv1 has no ties: set --data.ties drop"),
    (OpenImagePreferences, {"ties": "keep"}, "OpenImagePreferences has no ties"),
    (MHP, {"dimensions": {"beauty": 1.0}}, "MHP has no dimension beauty; it has overall, aesthetics, alignment, detail: set --data.dimensions"),
    (HPDv3, {"dimensions": {"detail": 1.0}}, "HPDv3 has no dimension detail; it has preference"),
    (MHP, {"list_size": 2, "binary": True}, "lists have no pairs: set binary: false"),
])  # fmt: skip
def test_what_a_dataset_lacks_is_refused(cls, options, said):
    with pytest.raises(ValueError, match=said):
        cls(path="x", **options)


def test_dimensions_choose_the_winner(tmp_path):
    """In the small copy the first image is better overall, the second in aesthetics; alignment is a tie."""
    path = str(published.mhp(tmp_path))
    red = lambda **options: published.redness((data := MHP(path=path, resolution=8, **options)).collate([data.load("train")[0]])["win"][0])
    assert red() == 1 and red(dimensions={"aesthetics": 1.0}) == 0
    assert red(dimensions={"overall": 1.0, "aesthetics": 0.5}) == 1 and red(dimensions={"overall": 0.5, "aesthetics": 1.0}) == 0
    tied = MHP(path=path, resolution=8, dimensions={"alignment": 1.0}, ties="keep")
    assert tied.collate([tied.load("train")[0]])["label"].tolist() == [0.5]
    with pytest.raises(ValueError, match="the split train compares no images"):
        MHP(path=path, dimensions={"detail": 1.0}).load("train")
    lists = MHP(path=path, resolution=8, dimensions={"overall": 2.0, "aesthetics": 1.0}, list_size=2)
    assert lists.collate([lists.load("train")[0]])["scores"].tolist() == [[[2, 0], [0, 1]]]


def test_a_record_whose_judgements_are_too_few_is_named(tmp_path):
    published.vision_prefer(tmp_path)
    file = tmp_path / "train.jsonl"
    file.write_text(file.read_text().replace("[5, 3, 3, 4]", "[5, 3]"))
    from lit_align.data.vision_prefer import VisionPrefer

    with pytest.raises(ValueError, match="record 0 of .*train.jsonl has 4 images and 2 judgements of fidelity"):
        VisionPrefer(path=str(file), resolution=8).load("train")


def test_held_out_pairs_of_another_split(tmp_path):
    published.hpd_v3(tmp_path)
    data = HPDv3(path=str(tmp_path), val_split="test", resolution=8)
    assert len(data.load("train")) == 3 and len(data.load("val")) == 4
    assert data.summary() == "train: 4 records, 3 pairs, 1 below confidence 0.95, 3 kept; val: 4 records, 4 pairs, 4 kept"
    assert HPDv3(path=str(tmp_path)).load("val") is None
