import json

import pytest
from data_parts import BLUE, RED
from datasets import Dataset
from datasets import Image as ImageFeature

from lit_align.data.preference_pairs import PreferencePairs


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_own_pairs_from_files(tmp_path, kind):
    for name, data in (("r.png", RED), ("b.png", BLUE)):
        (tmp_path / name).write_bytes(data)
    columns = {"prompt": ["a", "b"], "win": ["r.png", "b.png"], "lose": ["b.png", "r.png"]}
    if kind == "parquet":
        columns |= {"win": [RED, BLUE], "lose": [BLUE, RED]}
    table = Dataset.from_dict(columns)
    getattr(table, {"jsonl": "to_json"}.get(kind, f"to_{kind}"))(str(tmp_path / f"pairs.{kind}"))
    data = PreferencePairs(str(tmp_path / f"pairs.{kind}"), resolution=8)
    rows = data.load("train")
    batch = data.collate([{**rows[i], "index": i} for i in range(2)])
    assert batch["win"][0, 0].mean() == 1 and batch["win"][1, 2].mean() == 1 and batch["prompt"] == ["a", "b"]


def test_own_pairs_of_another_folder_and_other_columns(tmp_path):
    for folder, left, right in (("train", RED, BLUE), ("val", BLUE, RED)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(left)
        (tmp_path / folder / "b.png").write_bytes(right)
        record = {"prompt": "p", "chosen": "a.png", "rejected": "b.png"}
        (tmp_path / folder / "pairs.jsonl").write_text(json.dumps(record))
    paths = [str(tmp_path / folder / "pairs.jsonl") for folder in ("train", "val")]
    data = PreferencePairs(*paths, win_column="chosen", lose_column="rejected", resolution=8)
    for split, winner in (("train", 0), ("val", 2)):
        batch = data.collate([data.load(split)[0]])
        assert batch["win"][0, winner].min() == 1 and batch["lose"][0, winner].max() == 0


def test_own_pairs_as_images_of_datasets(tmp_path):
    rows = Dataset.from_dict({"prompt": ["p"] * 2, "win": [RED, RED], "lose": [BLUE, BLUE[:40]]})
    rows = rows.cast_column("win", ImageFeature()).cast_column("lose", ImageFeature(decode=False))
    rows.cast_column("lose", ImageFeature()).to_parquet(str(tmp_path / "pairs.parquet"))
    data = PreferencePairs(str(tmp_path / "pairs.parquet"), resolution=8)
    rows = data.load("train")
    assert data.collate([rows[0]])["win"][0, 0].min() == 1
    with pytest.raises(ValueError, match="row 1, column lose of .*pairs.parquet holds no readable image"):
        data.collate([rows[1]])


def test_a_missing_image_file_is_named_before_training(tmp_path):
    (tmp_path / "here.png").write_bytes(RED)
    (tmp_path / "pairs.csv").write_text(
        "prompt,win,lose\np,here.png,here.png\nq,here.png,gone.png\nr,gone.png,here.png\n"
    )
    path = str(tmp_path / "pairs.csv")
    with pytest.raises(
        FileNotFoundError, match=r"row 2, column win of .*pairs.csv: there is no file .*gone.png \(2 files"
    ):
        PreferencePairs(path, resolution=8).load("train")
    (tmp_path / "empty.csv").write_text("prompt,win,lose\np,here.png,here.png\nq,here.png,\n")
    with pytest.raises(FileNotFoundError, match=r"row 1, column lose of .*empty.csv: there is no file \(empty cell\)"):
        PreferencePairs(str(tmp_path / "empty.csv"), resolution=8).load("train")
    with pytest.warns(UserWarning, match=r"2 of 3 rows hold an unreadable image and are skipped: \[1, 2\]"):
        assert PreferencePairs(path, resolution=8, on_corrupt="skip").load("train")["prompt"] == ["p"]


def test_the_verdict_on_images_follows_the_files(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "win": "a.png", "lose": "b.png"}))
    kept = []
    for b in (RED[:40], BLUE, b"broken again"):
        (tmp_path / "a.png").write_bytes(RED)
        (tmp_path / "b.png").write_bytes(b)
        kept.append(len(PreferencePairs(str(tmp_path / "pairs.jsonl"), on_corrupt="skip").load("train")))
    assert kept == [0, 1, 0]


def test_columns_are_found_by_their_usual_names(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(BLUE)
    (tmp_path / "pairs.csv").write_text("caption,chosen,rejected,n\nred,a.png,b.png,1\n")
    data = PreferencePairs(str(tmp_path / "pairs.csv"), resolution=8)
    with caplog.at_level("INFO"):
        batch = data.collate([data.load("train")[0]])
    assert "prompt is column `caption`, win is column `chosen`, lose is column `rejected`" in caplog.text
    assert batch["prompt"] == ["red"] and batch["columns"] == {"n": [1]} and batch["win"][0, 0].min() == 1
    (tmp_path / "other.csv").write_text("caption,left,right\nred,a.png,b.png\n")
    with pytest.raises(
        ValueError, match="no column win or chosen .* columns are caption, left, right; set --data.win_col"
    ):
        PreferencePairs(str(tmp_path / "other.csv")).load("train")


def test_a_missing_column_is_named_with_those_found(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "win": "x.png", "lose": "y.png"}))
    with pytest.raises(ValueError, match="`best` not found .* columns are prompt, win, lose; set --data.win_column"):
        PreferencePairs(str(tmp_path / "pairs.jsonl"), win_column="best").load("train")
