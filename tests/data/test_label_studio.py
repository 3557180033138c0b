import json

import pytest
from data_parts import BLUE, RED

from lit_align.data.preference_pairs import PreferencePairs


def task(selected, prompt="p", names="image1,image2", left="red.png", right="blue.png", **annotation):
    """A task of Label Studio's JSON export, in its task format, with one annotation of a Pairwise tag."""
    result = [{"from_name": "pw", "to_name": names, "type": "pairwise", "value": {"selected": selected}}]
    found = {"id": 1, "completed_by": 7, "result": result if selected else [], "was_cancelled": False} | annotation
    return {"id": 3, "data": {"prompt": prompt, "image1": left, "image2": right, "topic": "t"}, "annotations": [found]}


def export(folder, *tasks):
    (folder / "red.png").write_bytes(RED)
    (folder / "blue.png").write_bytes(BLUE)
    (folder / "export.json").write_text(json.dumps(tasks))
    return str(folder / "export.json")


def test_choices_become_pairs(tmp_path, caplog):
    local = {"left": "/data/local-files/?d=red.png", "right": "/data/upload/5/blue.png"}
    tasks = [task("left", "a"), task("right", "b", **local), task(None), task("left", was_cancelled=True)]
    data = PreferencePairs(export(tmp_path, *tasks), resolution=8)
    with caplog.at_level("INFO"):
        rows = data.load("train")
    assert "2 choices, 1 without a choice, 1 cancelled" in caplog.text
    batch = data.collate([rows[i] for i in range(2)])
    assert batch["prompt"] == ["a", "b"] and batch["columns"] == {"topic": ["t", "t"]}
    assert batch["win"][0, 0].min() == 1 and batch["win"][1, 2].min() == 1 and batch["lose"][1, 0].min() == 1


@pytest.mark.parametrize(
    "found, said",
    [
        (task("left", names="img-1,img-2"), "task 0 of .* compares img-1,img-2, and its data are prompt, image1"),
        (task("left", left="https://x.org/a.png"), "task 0 of .* names https://x.org/a.png, which is no local file"),
        (task(None), "holds no pairwise choice"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, found, said):
    with pytest.raises(ValueError, match=said):
        PreferencePairs(export(tmp_path, found)).load("train")
