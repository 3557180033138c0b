import json

import pytest
import torch
from data_parts import BLUE, RED, fit

from lit_align.data.captioned_images import CaptionedImages


def folder_of_images(folder):
    """Files as `datasets` reads them as an imagefolder: two images and their captions."""
    (folder / "red.png").write_bytes(RED)
    (folder / "blue.png").write_bytes(BLUE)
    rows = [{"file_name": "red.png", "text": "red", "good": 1}, {"file_name": "blue.png", "text": "blue", "good": 0}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def test_a_folder_of_images_with_captions(tmp_path):
    data = CaptionedImages(folder_of_images(tmp_path), label_column="good", resolution=8, batch_size=2)
    rows = data.load("train")
    batch = data.collate([rows[i] for i in range(2)])
    shown = {p: x.mean((1, 2)).argmax().item() for p, x in zip(batch["prompt"], batch["image"])}
    assert shown == {"red": 0, "blue": 2}
    assert dict(zip(batch["prompt"], batch["label"].tolist())) == {"red": 1.0, "blue": 0.0}
    assert batch["image"].shape == (2, 3, 8, 8) and batch["columns"] == {}
    module, _ = fit(data, tmp_path)
    assert sorted(module.seen[0]) == [0, 1]


def test_a_file_of_images_with_captions(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "images.csv").write_text("path,caption,source\nred.png,red,web\n")
    names = {"image_column": "path", "prompt_column": "caption"}
    data = CaptionedImages(str(tmp_path / "images.csv"), **names, resolution=8)
    batch = data.collate([data.load("train")[0]])
    assert torch.equal(batch["image"][0, 0], torch.ones(8, 8)) and batch["columns"] == {"source": ["web"]}


def test_a_label_that_is_none_is_named(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "images.csv").write_text("image,text,good\nred.png,red,1\nred.png,red,\n")
    with pytest.raises(ValueError, match="row 1, column good of .*images.csv holds None: give 1 or 0"):
        CaptionedImages(str(tmp_path / "images.csv"), label_column="good").load("train")
