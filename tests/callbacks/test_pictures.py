"""ImageGrid, Comparison and SampleWriter: what they write is read back."""

import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lit_align.callbacks import Comparison, ImageGrid, SampleWriter
from lit_align.callbacks.grid import to_pil
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

BEFORE = torch.tensor([0.0, 1.0, 0.0, 0.5])
AFTER = torch.tensor([1.0, 1.0, 0.5, 0.0])
SKILLS = ["color", "count", "color", "count"]


class Paints(L.LightningModule):
    """Row i is a picture of one grey, i / 10; the reference's is black."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def validation_step(self, rows, i):
        rows = rows.tolist()
        image = torch.stack([torch.full((3, 8, 8), row / 10) for row in rows])
        prompts = [f"grey {row}" for row in rows]
        return {"image": image, "prompt": prompts, "index": rows, "seed": rows, "scores": {"exact": AFTER[rows]}}

    predict_step = validation_step

    def test_step(self, rows, i):
        out = self.validation_step(rows, i)
        skill = [SKILLS[row] for row in rows.tolist()]
        reference = {"reference_image": torch.zeros_like(out["image"]), "reference_scores": {"exact": BEFORE[rows]}}
        return out | {"columns": {"skill": skill}} | reference

    def training_step(self, rows, i):
        return self.net.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())

    def train_dataloader(self):
        return DataLoader(torch.arange(4), batch_size=2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def test_a_picture_keeps_its_pixels_and_is_enlarged_by_whole_factors():
    pixels = torch.randint(0, 256, (3, 8, 6)) / 255
    picture = to_pil(pixels, 20)
    assert picture.size == (18, 24)
    back = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(24, 18, 3)[::3, ::3] / 255
    torch.testing.assert_close(back.permute(2, 0, 1), pixels)


def test_grid_shows_at_most_max_images_of_one_validation(trainer, tmp_path):
    colors = {}
    for limit in (3, 16):
        root = tmp_path / str(limit)
        trainer([ImageGrid(limit)], max_epochs=2, default_root_dir=root).fit(Paints())
        paths = sorted((root / "samples").iterdir())
        assert [path.name for path in paths] == ["step_000002.png", "step_000004.png"]
        assert len({Image.open(path).size for path in paths}) == 1  # the second shows nothing of the first
        for path in paths:
            pixels = Image.open(path).convert("L").getcolors(1 << 20)
            colors[limit] = {value for n, value in pixels if n >= 128 * 128} - {255}
            assert colors[limit] == {round(row / 10 * 255) for row in range(min(limit, 4))}


def test_grid_goes_to_tensorboard(trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb")
    trainer([ImageGrid()], logger=logger).fit(Paints())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    image = events.Images("val/images")[0]
    with Image.open(tmp_path / "samples" / "step_000002.png") as sheet:
        assert (image.step, image.width, image.height) == (2, *sheet.size)


def test_writer_writes_every_image_once_with_its_line(trainer, tmp_path):
    for _ in range(2):  # again over itself
        trainer([SampleWriter(str(tmp_path / "out"))]).predict(Paints(), return_predictions=False)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2, 3]
    for row, line in enumerate(lines):
        assert line == {"file_name": f"{row:05d}.png", "prompt": f"grey {row}", "seed": row, "exact": AFTER[row].item()}
        assert Image.open(tmp_path / "out" / line["file_name"]).getpixel((0, 0)) == (round(row / 10 * 255),) * 3
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".png", ".jsonl"}


def test_writer_keeps_what_an_interrupted_run_made(trainer, tmp_path):
    class Fails(Paints):
        def predict_step(self, rows, i):
            if i == 1:
                raise RuntimeError("killed")
            return super().predict_step(rows, i)

    with pytest.raises(RuntimeError, match="killed"):
        trainer([SampleWriter()]).predict(Fails())
    lines = (tmp_path / "predict" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["00000.png", "00001.png"]


def test_comparison_figures(trainer, tmp_path, capsys):
    trainer([Comparison()]).test(Paints(), verbose=False)
    report = json.loads((tmp_path / "comparison.json").read_text())["exact"]
    gain = (AFTER - BEFORE).tolist()  # 1, 0, 0.5, -0.5
    mean, n = sum(gain) / 4, 4
    half = 1.96 * math.sqrt(sum((g - mean) ** 2 for g in gain) / (n - 1) / n)
    assert report["all"]["gain_interval"] == pytest.approx([mean - half, mean + half], rel=1e-3)
    assert (report["all"]["n"], report["all"]["before"], report["all"]["after"]) == (4, 0.375, 0.625)
    assert report["all"]["win_rate"] == (2 + 0.5) / 4  # two wins, one tie, one loss
    assert (report["color"]["n"], report["color"]["before"], report["color"]["after"]) == (2, 0.0, 0.75)
    assert (report["count"]["n"], report["count"]["before"], report["count"]["after"]) == (2, 0.75, 0.5)
    lines = capsys.readouterr().out.strip().splitlines()
    assert str(tmp_path / "comparison.png") in lines[-2]
    low, high = mean - half, mean + half
    assert lines[-1].startswith(f"exact accuracy 0.375 -> 0.625, gain 95% CI [{low:+.3f}, {high:+.3f}], ")
    with Image.open(tmp_path / "comparison.png") as sheet:
        greys = {value for count, value in sheet.convert("L").getcolors(1 << 20) if count >= 128 * 128}
    assert greys >= {0, 26, 51, 76}


def test_comparison_of_a_skill_with_one_prompt_is_plain_json(trainer, tmp_path):
    trainer([Comparison()], limit_test_batches=1).test(Paints(), verbose=False)

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    report = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=refuse)
    assert report["exact"]["color"]["n"] == 1


def test_comparison_counts_the_seconds_of_the_fit_before_it(trainer, tmp_path, capsys):
    root = tmp_path / "new" / "run"  # not there yet
    trainer([Comparison()], limit_val_batches=0, default_root_dir=root).fit(Paints())
    (root / "fit_seconds.json").write_text("1000")
    trainer([Comparison()], default_root_dir=root).test(Paints(), verbose=False)
    seconds = float(capsys.readouterr().out.strip().splitlines()[-1].split(", ")[-1].removesuffix(" s"))
    assert 1000 <= seconds < 1060


def test_a_resumed_fit_adds_its_seconds(trainer, tmp_path):
    first = trainer([Comparison()], limit_val_batches=0, max_epochs=1)
    first.fit(Paints())
    first.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "fit_seconds.json").write_text("1000")
    trainer([Comparison()], limit_val_batches=0, max_epochs=2).fit(Paints(), ckpt_path=tmp_path / "a.ckpt")
    assert 1000 <= json.loads((tmp_path / "fit_seconds.json").read_text()) < 1060
    trainer([Comparison()], limit_val_batches=0, max_epochs=1).fit(Paints())
    assert json.loads((tmp_path / "fit_seconds.json").read_text()) < 1000  # a new one starts at 0


def test_comparison_sheet_stays_small_for_large_images(trainer, tmp_path):
    class Large(Paints):
        def test_step(self, rows, i):
            out = super().test_step(rows, i)
            grow = lambda image: image.repeat_interleave(64, 2).repeat_interleave(64, 3)
            return out | {key: grow(out[key]) for key in ("image", "reference_image")}

    trainer([Comparison()]).test(Large(), verbose=False)
    with Image.open(tmp_path / "comparison.png") as sheet:
        assert max(sheet.size) <= 2400


def test_comparison_without_rewards_is_a_sheet(trainer, tmp_path, capsys):
    class Unscored(Paints):
        def test_step(self, rows, i):
            return super().test_step(rows, i) | {"scores": {}, "reference_scores": {}}

    trainer([Comparison()]).test(Unscored(), verbose=False)
    lines = capsys.readouterr().out.strip().splitlines()
    assert str(tmp_path / "comparison.png") in lines[-2] and lines[-1].startswith("there is no reward to compare by")
    with Image.open(tmp_path / "comparison.png") as sheet:  # four cells of two pictures
        assert sheet.width == 4 * (2 * (128 + 6) + 6)


def test_comparison_without_a_reference_is_a_sheet_of_samples(trainer, tmp_path, capsys):
    class Alone(Paints):
        test_step = Paints.validation_step

    trainer([Comparison()]).test(Alone(), verbose=False)
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("Alone has no fixed reference to compare with")
    with Image.open(tmp_path / "comparison.png") as sheet:  # four cells of one picture
        assert sheet.width == 4 * (128 + 6 + 6)
    assert json.loads((tmp_path / "comparison.json").read_text()) == {}


def test_a_command_without_prompts_says_that_it_made_nothing(trainer, capsys):
    trainer([Comparison()], limit_test_batches=0).test(Paints(), verbose=False)
    assert capsys.readouterr().out.strip().splitlines()[-1] == "test sampled nothing: there was no batch of test prompts."
    trainer([SampleWriter()], limit_predict_batches=0).predict(Paints())
    assert capsys.readouterr().out.strip() == "predict wrote nothing: there was no batch of prompts."


def test_validate_does_not_overwrite_a_step(trainer, tmp_path, capsys):
    trainer([ImageGrid()]).validate(Paints(), verbose=False)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["validate.png"]
    assert f"samples: {tmp_path / 'samples/validate.png'}" in capsys.readouterr().out
