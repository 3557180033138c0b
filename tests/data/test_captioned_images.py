import json

import pytest
import torch
from data_parts import BLUE, RED, fit

from lit_align.cli import main
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


def folder_of_texts(folder, *without):
    (folder / "more").mkdir()
    for name, image in (("red", RED), ("more/blue", BLUE)):
        (folder / f"{name}.png").write_bytes(image)
        if name not in without:
            (folder / f"{name}.txt").write_text(f"a {name[-4:]} thing\n")
    return str(folder)


def test_a_folder_of_images_with_a_text_file_beside_each(tmp_path, monkeypatch):
    data = CaptionedImages(folder_of_texts(tmp_path), resolution=8)
    batch = data.collate(list(data.load("train")))
    assert batch["prompt"] == ["a blue thing", "a red thing"] and batch["columns"] == {}
    assert batch["image"][0, 2].min() == 1 and batch["image"][1, 0].min() == 1
    monkeypatch.chdir(tmp_path.parent)
    tiny = "--model.policy.pretrained tiny --model.policy.resolution 32 --data.resolution 32 --trainer.max_steps 1"
    own = f"--data CaptionedImages --data.path {tmp_path.name} --data.batch_size 2 --trainer.limit_val_batches 0"
    assert main(["fit", "--config", "shapes/sft", *f"--model.learns_from image {own} {tiny}".split()]).trainer.global_step == 1


def test_an_image_without_a_caption_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"more/blue.png has no caption: write it into blue.txt beside it"):
        CaptionedImages(folder_of_texts(tmp_path, "more/blue")).load("train")


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
