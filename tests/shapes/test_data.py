"""Shapes as a dataset."""

import torch

from lit_align.shapes.data import Shapes, draw
from lit_align.shapes.judge import judge


def test_every_image_shows_its_caption_and_rows_depend_on_seed_and_number_alone():
    data = Shapes(n=30, seed=3)
    rows = [{**row, "index": i} for i, row in enumerate(data.load("train"))]
    batch = data.collate(rows)
    assert batch["image"].shape == (30, 3, 64, 64) and judge(batch["image"], batch["prompt"]).all()
    alone = data.collate([rows[7]])
    assert torch.equal(alone["image"][0], batch["image"][7]) and alone["prompt"] == [batch["prompt"][7]]
    assert draw(3, 7) == draw(3, 7) != draw(4, 7) and data.load("val") is None


def test_other_resolutions_show_the_same_scene():
    rows = [{"prompt": str(draw(0, i)[0]), "index": i} for i in range(8)]
    large = Shapes(n=8, resolution=128, seed=0).collate(rows)
    assert large["image"].shape == (8, 3, 128, 128) and judge(large["image"], large["prompt"]).mean() > 0.8
