"""What callbacks write of videos is read back."""

import json

import av
import lightning as L
import pytest
import torch
from lit_align.callbacks import Comparison, ImageGrid, SampleWriter
from lit_align.callbacks.grid import strip
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

FRAMES = 6


class Films(L.LightningModule):
    """Row i is a video that becomes bright from left to right; the reference's is black."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def validation_step(self, rows, i):
        rows = rows.tolist()
        greys = torch.linspace(0, 1, FRAMES).view(1, FRAMES, 1, 1, 1).expand(len(rows), FRAMES, 3, 16, 16)
        scores = {"exact": torch.ones(len(rows))}
        return {"image": greys.clone(), "prompt": ["p"] * len(rows), "index": rows, "seed": rows, "scores": scores, "fps": 8}

    predict_step = validation_step

    def test_step(self, rows, i):
        out = self.validation_step(rows, i)
        return out | {"reference_image": torch.zeros_like(out["image"]), "reference_scores": {"exact": torch.zeros(len(rows))}}


def run(command, tmp_path, callback):
    trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[callback], logger=False, enable_progress_bar=False)
    getattr(trainer, command)(Films(), DataLoader(torch.arange(3), batch_size=2))


def film(path):
    image = Image.open(path)
    greys = []
    for k in range(image.n_frames):
        image.seek(k)
        greys.append(image.convert("RGB"))
    return greys, image.info["duration"]


def test_the_grid_shows_four_frames_and_plays(tmp_path):
    run("validate", tmp_path, ImageGrid())
    sheet = Image.open(tmp_path / "samples/validate.png")
    centres = [sheet.getpixel((6 + 64 + j * 134, 6 + 64))[0] for j in range(4)]  # cells of 128 pixels, 6 apart
    assert centres == [0, 102, 153, 255]  # of the frames 0, 2, 3 and 5
    frames, milliseconds = film(tmp_path / "samples/validate.gif")
    assert len(frames) == FRAMES and milliseconds == pytest.approx(125, abs=5)
    assert [f.getpixel((70, 70))[0] for f in frames] == pytest.approx([0, 51, 102, 153, 204, 255], abs=3)


def test_the_comparison_plays_before_and_after_side_by_side(tmp_path):
    run("test", tmp_path, Comparison())
    assert json.loads((tmp_path / "comparison.json").read_text())["exact"]["all"]["win_rate"] == 1
    frames, _ = film(tmp_path / "comparison.gif")
    assert len(frames) == FRAMES
    last = frames[-1]
    assert last.getpixel((70, 90))[0] < 5 and last.getpixel((70 + 134, 90))[0] > 250
    sheet = Image.open(tmp_path / "comparison.png")
    assert [sheet.getpixel((70 + j * 134, 90))[0] for j in range(6)] == pytest.approx([0, 0, 0, 0, 102, 255], abs=1)


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_predict_writes_a_file_for_each_video(ending, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_align.callbacks.samples.video_ending", lambda: ending)
    run("predict", tmp_path, SampleWriter())
    lines = [json.loads(line) for line in (tmp_path / "predict/metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"0000{i}{ending}" for i in range(3)]
    path = tmp_path / "predict" / lines[2]["file_name"]
    if ending == ".gif":
        greys = [frame.getpixel((8, 8))[0] for frame in film(path)[0]]
    else:
        with av.open(str(path)) as file:
            assert float(file.streams.video[0].average_rate) == 8
            greys = [frame.to_image().getpixel((8, 8))[0] for frame in file.decode(video=0)]
    assert greys == pytest.approx([0, 51, 102, 153, 204, 255], abs=6)


def test_a_strip_has_the_ends():
    assert strip(list(range(9)), 3) == [0, 4, 8] and strip([7]) == [7] and strip(list(range(3))) == [0, 1, 2]
