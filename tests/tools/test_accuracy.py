"""The table of rewards and datasets, on published artefacts, against a hand count."""

import json

import pytest
from data_parts import pick_a_pic
from published import image_reward_db

from lit_align.cli import main

REWARDS = ["--rewards", "[{class_path: metric_parts.Redness}, {class_path: metric_parts.Redness, init_args: {sign: -1}}]", "--device", "cpu"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(place, *data, more=()):
    main(["accuracy", *REWARDS, "--data", f"[{', '.join(data)}]", *more])
    return json.loads((place / "accuracy/accuracy.json").read_text())


def test_lists_and_pairs_in_one_table(place, capsys):
    """ImageRewardDB: red, purple, purple, blue by rank 1, 2, 2, 3, so 5 strict pairs and a tie; Pick-a-Pic: red first,
    labels 1, 0, 0.5, 1."""
    (place / "db").mkdir()
    image_reward_db(place / "db")
    pick_a_pic(place / "p.parquet", [1.0, 0.0, 0.5, 1.0])
    found = measured(place, "{class_path: ImageRewardDB, init_args: {path: db, split: test}}", "{class_path: PickAPic, init_args: {path: p.parquet}}")
    db, pairs = found["ImageRewardDB test"], found["PickAPic train"]
    assert db["red"]["pairs"] == 4 * 6 and db["red"]["ties"] == 4
    assert all(db["red"][figure] == pytest.approx(1) for figure in ("strict", "per_prompt", "not_inverted", "with_ties"))
    assert db["blue"]["strict"] == 0 and db["blue"]["not_inverted"] == pytest.approx(1 / 6)
    assert pairs["red"]["strict"] == pytest.approx(2 / 3) and pairs["blue"]["strict"] == pytest.approx(1 / 3) and pairs["red"]["ties"] == 1
    said = capsys.readouterr().out
    assert "## ImageRewardDB test: 24 pairs, 4 of them ties" in said and "| red | 1.000 |" in said
    assert measured(place, "{class_path: ImageRewardDB, init_args: {path: db, split: test}}", more=["--limit", "1"])["ImageRewardDB test"]["red"]["pairs"] == 6


def test_what_has_no_judgements_is_refused(place, capsys):
    with pytest.raises(SystemExit):
        measured(place, "{class_path: Prompts, init_args: {path: p.txt}}")
    assert "Prompts has no judged images" in capsys.readouterr().err.splitlines()[-1]


def test_smoke(place):
    """Published rewards and datasets of the hub, with tiny weights and shipped rows."""
    data = "{class_path: HPDv2, init_args: {smoke: true}}, {class_path: PickAPic, init_args: {smoke: true}}"
    main(["accuracy", "--rewards", "[PickScore, ImageReward]", "--data", f"[{data}]", "--smoke", "true", "--limit", "2", "--device", "cpu"])
    found = json.loads((place / "accuracy/accuracy.json").read_text())
    assert set(found) == {"HPDv2 train", "PickAPic train"} and set(found["HPDv2 train"]) == {"pickscore", "image_reward"}
