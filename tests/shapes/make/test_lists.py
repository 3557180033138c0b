"""Lists of samples and what the judge sees in them."""

import io

import numpy as np
import torch
from PIL import Image

from lit_align.data.tables import read_table
from lit_align.shapes.annotators import qualities
from lit_align.shapes.judge import see
from lit_align.shapes.make.lists import jpeg, main, pixels
from lit_align.shapes.render import render
from lit_align.shapes.scenes import Object, is_held_out


def test_jpeg_keeps_a_scene():
    (image,) = render([[Object("red", "cross", 20, 30, 8)]])
    (back,) = pixels([jpeg(image)])
    assert back.shape == image.shape and (back - image).abs().mean() < 0.02


def test_the_command_writes_k_images_and_their_qualities_for_each_prompt(tmp_path, shapes_sd, capsys):
    flags = ["--policy", shapes_sd, "--out", str(tmp_path / "new/lists.parquet"), "--steps", "2"]
    main([*flags, "--prompts", "3", "--per_prompt", "2"])
    rows = read_table(str(tmp_path / "new/lists.parquet"))
    assert len(rows) == 3 and not any(is_held_out(row["prompt"]) for row in rows)
    for row in rows:
        images = [torch.from_numpy(np.array(Image.open(io.BytesIO(x)))).permute(2, 0, 1) / 255 for x in row["images"]]
        names = qualities([], row["prompt"]).keys()
        assert len(images) == 2 and all(len(row[name]) == 2 for name in names)
        found = [qualities(scene, row["prompt"]) for scene in see(torch.stack(images))]  # of the stored file
        assert {name: row[name] for name in names} == {name: [q[name] for q in found] for name in names}
    assert "3 lists of 2 in " in capsys.readouterr().out


def test_the_shipped_verdicts_are_the_judges(shapes_sd):
    rows = read_table(f"{shapes_sd}/lists/train.parquet").select(range(40))
    for row in rows:
        found = [qualities(scene, row["prompt"]) for scene in see(pixels(row["images"]))]
        assert {name: row[name] for name in found[0]} == {name: [q[name] for q in found] for name in found[0]}
