"""Every published dataset: what is kept of a small copy, which image wins, and two steps of training by the command line."""

import json
import shlex
from pathlib import Path

import published
import pytest
from published import redness

from lit_align.cli import main
from lit_align.data.diffusion_db import DiffusionDB
from lit_align.data.hpd_v1 import HPDv1
from lit_align.data.hpd_v2 import HPDv2
from lit_align.data.hpd_v3 import HPDv3
from lit_align.data.image_reward_db import ImageRewardDB
from lit_align.data.image_social import ImageSocial
from lit_align.data.judged import Judged
from lit_align.data.mhp import MHP
from lit_align.data.open_image_preferences import OpenImagePreferences
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.rich_hf import RichHF18K
from lit_align.data.vision_prefer import VisionPrefer
from lit_align.shapes.lists import ShapesPairs

TINY = """--model.policy StableDiffusion --model.policy.pretrained tiny --model.policy.resolution 32 --model.policy.adapter LoRA
    --data.batch_size 2 --trainer.max_steps 2 --trainer.accelerator cpu --trainer.enable_progress_bar false
    --trainer.enable_model_summary false --trainer.logger false --trainer.enable_checkpointing false""".split()
DPO, KTO, PL, SFT = (["--model", name] for name in ("DiffusionDPO", "DiffusionKTO", "PlackettLuceDPO", "SFT"))
RIC = ["--model", "RewardsInContext", "--model.minibatch", "2", "--model.conditions", json.dumps({f"r{i}": {"class_path": "JPEGCompressibility"} for i in range(4)})]
DATASETS = {  # what is kept, and by which method it is trained on
    "hpd_v1": (HPDv1, {}, "5 records, 8 pairs, 1 records without a pair, 8 kept", DPO),
    "hpd_v2": (HPDv2, {"encode_once": True}, "4 records, 4 pairs, 4 kept", DPO),
    "hpd_v3": (HPDv3, {}, "4 records, 3 pairs, 1 below confidence 0.95, 3 kept", DPO),
    "image_reward_db": (ImageRewardDB, {"size": "1k", "buckets": True}, "8 records, 48 pairs, 8 ties, 40 kept", DPO),
    "pick_a_pic_webdataset": (PickAPic, {}, "6 pairs, 2 ties, 4 kept", DPO),
    "pick_a_pic_columns": (PickAPic, {"binary": True}, "4 pairs, 1 without label, 3 preferred at least once, 6 images kept", KTO),
    "pick_a_pic_no_images": (PickAPic, {"images": "uids", "models": "dream"}, "4 pairs, 2 of other models, 2 kept", DPO),
    "open_image_preferences": (OpenImagePreferences, {}, "4 pairs, 4 kept", DPO),
    "mhp": (MHP, {}, "4 records, 4 pairs, 4 kept", DPO),
    "vision_prefer": (VisionPrefer, {"list_size": 3}, "4 records, 4 kept", PL),
    "image_social": (ImageSocial, {"weight_by": "prompt"}, "4 pairs, 4 kept", DPO),
    "diffusion_db": (DiffusionDB, {}, "4 rows, 2 above NSFW 0.5, or without a score, 2 kept", SFT),
    "rich_hf": (RichHF18K, {"pick_a_pic": "pick_a_pic", "encode_once": True}, "5 rows, 1 without an image, 4 kept", RIC),
}


@pytest.fixture(autouse=True)
def unpacked_here(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def made(name, tmp_path):
    """The path and the options of a small copy."""
    (tmp_path / name).mkdir()
    path = getattr(published, name)(tmp_path / name)
    options = {k: str(path / v) if v in ("uids", "pick_a_pic") else v for k, v in DATASETS[name][1].items()}
    return str(path), options


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_kept_and_which_image_wins(name, tmp_path):
    cls, _, summary, _ = DATASETS[name]
    path, options = made(name, tmp_path)
    data = cls(path=path, resolution=16, **options)
    rows = data.load("train")
    assert data.summary() == f"train: {summary}"
    for i in range(len(rows)):
        batch = data.collate([rows[i]])
        if "win" in batch:
            assert redness(batch["win"][0]) > redness(batch["lose"][0])
        elif "label" in batch:
            assert redness(batch["image"][0]) == batch["label"][0]
        elif "images" in batch:
            order = batch["scores"].sum(2)[0]
            assert order.argsort().tolist() == sorted(range(3), key=lambda k: redness(batch["images"][0, k]))
        else:
            assert redness(batch["image"][0]) == float(cls is DiffusionDB or i % 2 == 0)


@pytest.mark.parametrize("name", DATASETS)
def test_two_steps_by_the_command_line(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    cls, _, summary, method = DATASETS[name]
    path, options = made(name, tmp_path)
    flags = [f"--data.{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in options.items()]
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        cli = main(["fit", *method, "--data", cls.__name__, "--data.path", path, *flags, *TINY])
    assert cli.trainer.global_step >= 2 and cli.trainer.callback_metrics["train/loss"].isfinite()
    assert f"{cls.__name__}: train: {summary}" in caplog.text


@pytest.mark.slow
def test_the_commands_of_the_readme(tmp_path, monkeypatch, capsys):
    """With tiny weights, and small copies in the place of the data."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line)[3:] for line in text.splitlines() if "--data HPDv2" in line or "--data ImageRewardDB" in line or "m lit_align label" in line]
    assert len(commands) == 3
    for name in ("hpd_v2", "image_reward_db"):
        (tmp_path / name).mkdir()
        getattr(published, name)(tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "two blue squares"}\n')
    small = "--model.policy.pretrained tiny --model.policy.resolution 32 --model.policy.dtype float32 --data.resolution 32 --data.num_workers 0 --data.val_prompts null --trainer.accelerator cpu --trainer.precision 32-true --trainer.max_epochs 1 --trainer.max_steps 2".split()
    for command in commands:
        fit = command[0] == "fit"
        main(command + (small if fit else ["--sampler.steps", "1"]) + (["--data.path", "image_reward_db"] if "ImageRewardDB" in command else []))
    assert "2 pairs of 2 prompts" in capsys.readouterr().out


STREAMED = {"pick_a_pic_webdataset": PickAPic, "pick_a_pic_columns": PickAPic, "open_image_preferences": OpenImagePreferences, "image_social": ImageSocial, "diffusion_db_parquet": DiffusionDB}  # fmt: skip


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_holds_the_rows_of_the_table(name, tmp_path):
    (tmp_path / name).mkdir()
    path = str(getattr(published, name)(tmp_path / name))
    seen = []
    for streaming in (False, True):
        data = STREAMED[name](path=path, resolution=16, streaming=streaming)
        rows = list(data.load("train"))
        batch = data.collate(rows)
        key = "win" if "win" in batch else "image"
        seen.append((sorted(batch["prompt"]), [redness(image) for image in batch[key]]))
    assert seen[0] == seen[1] and len(seen[0][0]) > 1 and set(seen[0][1]) == {1.0}


JSON_BASED = {"hpd_v1": HPDv1, "hpd_v2": HPDv2, "hpd_v3": HPDv3, "mhp": MHP, "vision_prefer": VisionPrefer}


@pytest.mark.parametrize("name", JSON_BASED)
@pytest.mark.parametrize("form", [{"binary": True}, {"list_size": 2}, {"weight_by": "gap"}])
def test_every_form_of_feedback(name, form, tmp_path):
    path, _ = made(name, tmp_path)
    data = JSON_BASED[name](path=path, resolution=16, **form)
    rows = data.load("train")
    batch = data.collate([rows[i] for i in range(len(rows))])
    if "binary" in form:
        shown = [[redness(x) for x, label in zip(batch["image"], batch["label"]) if label == good] for good in (0, 1)]
        assert max(shown[0]) < min(shown[1]) and len(set(map(str, rows["image"][:]))) == len(rows)
    elif "list_size" in form:
        assert batch["images"].shape[:2] == batch["scores"].shape[:2] == (len(rows), 2)
        for images, scores in zip(batch["images"], batch["scores"].sum(2)):
            red = [redness(image) for image in images]
            assert (scores[0] > scores[1]) == (red[0] > red[1]) and (scores[0] < scores[1]) == (red[0] < red[1])
    else:
        assert batch["weight"].mean().item() == pytest.approx(1) and (batch["weight"] > 0).all()


@pytest.mark.parametrize("cls", sorted({cls for cls, *_ in DATASETS.values() if issubclass(cls, Judged)}, key=lambda c: c.__name__))
def test_a_dataset_that_is_not_there_says_where_it_is(cls, tmp_path):
    with pytest.raises(FileNotFoundError, match="(?s)is neither.*set --data.path"):
        cls(path="nobody/nothing").load("train")


def test_every_dataset_is_tested():
    shipped = {c for base in Judged.__subclasses__() for c in base.__subclasses__()} - {ShapesPairs}  # which needs no file
    assert shipped <= {cls for cls, *_ in DATASETS.values()}


@pytest.mark.parametrize("name", ["hpd_v2", "open_image_preferences", "vision_prefer", "diffusion_db", "rich_hf"])
def test_smoke_needs_no_file(name):
    data = DATASETS[name][0](path="nowhere", smoke=True, resolution=16)
    rows = data.load("train")
    assert len(data.collate([rows[0], rows[1]])["prompt"]) == 2


@pytest.mark.parametrize("name", ["hpd_v2", "image_reward_db"])
def test_a_missing_image_is_named_or_its_row_left_out(name, tmp_path):
    cls, options = DATASETS[name][:2]
    path, _ = made(name, tmp_path)
    data = cls(path=path, resolution=16, **options)
    whole = data.load("train")
    (gone,) = [tmp_path / whole[0]["image_0"]]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"column (file_path|image_path) of .*: there is no file {gone}"):
        cls(path=path, resolution=16, **options).load("train")
    left = cls(path=path, resolution=16, on_corrupt="skip", **options)
    with pytest.warns(UserWarning, match="hold an unreadable image and are skipped"):
        rows = left.load("train")
    lost = sum(str(gone) in (row["image_0"], row["image_1"]) for row in whole)
    assert len(rows) == len(whole) - lost and f"{lost} with an unreadable image, {len(rows)} kept" in left.summary()
