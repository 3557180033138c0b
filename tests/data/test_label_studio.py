import json

import pytest
from data_parts import BLUE, RED

from lit_align.cli import main
from lit_align.data.preference_pairs import PreferencePairs


def task(selected, prompt="p", names=("image1", "image2"), left="red.png", right="blue.png", **annotation):
    """A task of Label Studio's JSON export with one annotation of a Pairwise tag, in whose result `from_name` and
    `to_name` are both the name of the tag."""
    found = {"from_name": "pw", "id": "Dx_aB91ISN", "to_name": "pw", "type": "pairwise", "origin": "manual"}
    result = [found | {"value": {"selected": selected}}] if selected else []
    found = {"id": 1, "completed_by": 7, "result": result, "was_cancelled": False, "lead_time": 2.5} | annotation
    data = {"prompt": prompt, names[1]: right, names[0]: left, "topic": "t"}
    return {"id": 3, "data": data, "annotations": [found], "predictions": []}


def export(folder, *tasks):
    (folder / "red.png").write_bytes(RED)
    (folder / "blue.png").write_bytes(BLUE)
    (folder / "export.json").write_text(json.dumps(tasks))
    return str(folder / "export.json")


NAMES = [("image1", "image2"), ("img-a", "img-b"), ("left_image", "right_image"), ("IMG_1", "IMG_2")]


@pytest.mark.parametrize("names", NAMES)
def test_choices_become_pairs(names, tmp_path, caplog):
    local = {"left": "/data/local-files/?d=red.png", "right": "/data/upload/5/blue.png", "names": names}
    tasks = [task("left", "a", names), task("right", "b", **local), task(None), task("left", was_cancelled=True)]
    data = PreferencePairs(export(tmp_path, *tasks), resolution=8)
    with caplog.at_level("INFO"):
        rows = data.load("train")
    assert "2 choices, 1 without a choice, 1 cancelled" in caplog.text
    assert f"the left image is `{names[0]}` and the right one `{names[1]}`" in caplog.text
    batch = data.collate([rows[i] for i in range(2)])
    assert batch["prompt"] == ["a", "b"] and batch["columns"] == {"topic": ["t", "t"]}
    assert batch["win"][0, 0].min() == 1 and batch["win"][1, 2].min() == 1 and batch["lose"][1, 0].min() == 1


def test_the_fields_can_be_named(tmp_path):
    path = export(tmp_path, task("left", names=("base", "tuned")))
    row = PreferencePairs(path, left_column="tuned", right_column="base", resolution=8)
    batch = row.collate([row.load("train")[0]])
    assert batch["win"][0, 2].min() == 1 and batch["lose"][0, 0].min() == 1


@pytest.mark.parametrize(
    "found, options, said",
    [
        (task("left", names=("base", "tuned")), {}, "left_column and --data.right_column, in the order of the Pairwise"),
        (task("left"), {"left_column": "image1"}, "give both"),
        (task("left"), {"left_column": "image3", "right_column": "image2"}, "task 0 of .* has no image3; its data are prompt"),
        (task("left", left="https://x.org/a.png"), {}, "task 0 of .* names https://x.org/a.png, which is no local file"),
        (task(None), {}, "holds no pairwise choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(tmp_path, found, options, said):
    with pytest.raises(ValueError, match=said):
        PreferencePairs(export(tmp_path, found), **options).load("train")


def test_the_fields_are_those_of_an_export(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,win,lose\np,red.png,blue.png\n")
    with pytest.raises(ValueError, match="pairs.csv is no Label Studio export"):
        PreferencePairs(str(tmp_path / "pairs.csv"), left_column="win", right_column="lose").load("train")


def test_an_export_trains_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export(tmp_path, *(task(side, f"{side} {i}") for i in range(2) for side in ("left", "right")))
    tiny = "--model.policy.pretrained tiny --model.policy.resolution 32 --data.resolution 32 --trainer.max_steps 1"
    own = "--data PreferencePairs --data.path export.json --data.val_path null --data.batch_size 2"
    quiet = "--trainer.limit_val_batches 0 --trainer.enable_progress_bar false"
    cli = main(["fit", "--config", "shapes/dpo", *f"{own} {tiny} {quiet}".split()])
    assert cli.trainer.global_step == 1 and "4 pairs, 2 a step" in capsys.readouterr().out
