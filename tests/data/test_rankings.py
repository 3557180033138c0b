import json

import pytest
from data_parts import BLUE, RED, picture
from datasets import Dataset

from lit_align.data.rankings import Rankings


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rankings_from_a_file(tmp_path, kind):
    images = [RED, BLUE, picture((0, 255, 0))]
    if kind == "jsonl":
        for name, data in zip("abc", images):
            (tmp_path / name).write_bytes(data)
    cells = images if kind == "parquet" else ["a", "b", "c"]
    rows = [{"prompt": f"p{i}", "images": cells, "taste": [3.0, 1.0, 2.0], "truth": [0.0, i, 1.0]} for i in range(2)]
    path = tmp_path / f"lists.{kind}"
    Dataset.from_list(rows).to_parquet(path) if kind == "parquet" else path.write_text("\n".join(map(json.dumps, rows)))
    data = Rankings(str(path), score_columns=["taste", "truth"], resolution=16, batch_size=2)
    table = data.load("train")
    batch = data.collate([table[i] for i in range(2)])
    assert batch["images"].shape == (2, 3, 3, 16, 16) and batch["images"][1, 1, 2].mean() == 1  # the second is blue
    assert batch["scores"].tolist() == [[[3, 0], [1, 0], [2, 1]], [[3, 0], [1, 1], [2, 1]]]
    with pytest.raises(
        ValueError,
        match="column `scores` not found in .*; columns are images, prompt, taste, truth|columns are prompt, images",
    ):
        Rankings(str(path)).load("train")


def test_lists_of_unequal_length_are_named(tmp_path):
    rows = [{"prompt": "p", "images": [RED] * n, "scores": [1.0] * n} for n in (3, 2)]
    Dataset.from_list(rows).to_parquet(tmp_path / "lists.parquet")
    data = Rankings(str(tmp_path / "lists.parquet"), resolution=16)
    table = data.load("train")
    with pytest.raises(ValueError, match=r"row 1 of .*lists.parquet has lists of \[2\] entries; 3 are due"):
        data.collate([table[0], table[1]])


@pytest.mark.parametrize("change, said", [({"scores": [1.0, None]}, "lacks a score"), ({"scores": None}, "lists of")])
def test_a_missing_score_is_named(tmp_path, change, said):
    rows = [{"prompt": "p", "images": [RED] * 2, "scores": [1.0, 0.0]} for _ in range(2)]
    Dataset.from_list([rows[0], rows[1] | change]).to_parquet(tmp_path / "lists.parquet")
    data = Rankings(str(tmp_path / "lists.parquet"), resolution=16)
    table = data.load("train")
    with pytest.raises(ValueError, match=f"row 1 of .*lists.parquet .*{said}"):
        data.collate([table[0], table[1]])


def test_a_missing_image_file_is_named_before_training(tmp_path):
    (tmp_path / "a.png").write_bytes(RED)
    row = {"prompt": "p", "images": ["a.png", "gone.png"], "scores": [1.0, 0.0]}
    (tmp_path / "lists.jsonl").write_text(json.dumps(row))
    with pytest.raises(FileNotFoundError, match="row 0, column images of .*lists.jsonl: there is no file .*gone.png"):
        Rankings(str(tmp_path / "lists.jsonl")).load("train")
