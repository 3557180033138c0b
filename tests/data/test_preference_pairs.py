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


def test_a_missing_image_file_is_named(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,win,lose\np,gone.png,gone.png\n")
    data = PreferencePairs(str(tmp_path / "pairs.csv"), resolution=8)
    with pytest.raises(ValueError, match="row 0, column win of .*pairs.csv holds no readable image .*gone.png"):
        data.collate([data.load("train")[0]])


def test_a_missing_column_is_named_with_those_found(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "x.png", "lose": "y.png"}))
    with pytest.raises(ValueError, match="`win` not found .* columns are prompt, chosen, lose; set --data.win_column"):
        PreferencePairs(str(tmp_path / "pairs.jsonl")).load("train")
