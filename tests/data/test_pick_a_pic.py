import published
import pytest
from data_parts import BLUE, RED, pick_a_pic, picture
from datasets import Dataset, load_dataset

from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.tables import read_prompts
from lit_align.shapes.make.pairs import row


def test_winner_first_by_label_and_ties_dropped(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0, 0.5, 1.0])
    data = PickAPic(path, resolution=16, batch_size=3)
    rows = data.load("train")
    assert rows["prompt"] == ["prompt 0", "prompt 1", "prompt 3"]
    batch = data.collate([{**rows[i], "index": i} for i in range(3)])
    assert batch["win"].shape == (3, 3, 16, 16) and batch["prompt"] == ["prompt 0", "prompt 1", "prompt 3"]
    assert batch["win"][0, 0].mean() == 1 and batch["win"][1, 2].mean() == 1 and batch["lose"][1, 0].mean() == 1


def test_ties_kept_carry_their_label(tmp_path):
    data = PickAPic(pick_a_pic(tmp_path / "train.parquet", [0.5, 0.0]), resolution=8, ties="keep")
    rows = data.load("train")
    batch = data.collate([{**rows[i], "index": i} for i in range(2)])
    assert batch["label"].tolist() == [0.5, 1.0] and batch["win"][0, 0].mean() == 1


def test_pairs_as_single_images_each_once(tmp_path):
    """An image that won anywhere is good, one that only ever lost is bad, ties say nothing."""
    green = picture((0, 255, 0))
    shown = [(RED, BLUE, 1.0), (BLUE, green, 1.0), (green, RED, 0.0), (RED, green, 0.5)]
    rows = [row(f"prompt {i}", a, b, label, "m", i, 0) for i, (a, b, label) in enumerate(shown)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    data = PickAPic(str(tmp_path / "train.parquet"), resolution=16, batch_size=3, binary=True)
    table = data.load("train")
    batch = data.collate([table[i] for i in range(3)])
    colors = [("red", "green", "blue")[image.mean((1, 2)).argmax()] for image in batch["image"]]
    assert dict(zip(colors, batch["label"].tolist())) == {"red": 1.0, "blue": 1.0, "green": 0.0}
    assert batch["prompt"] == ["prompt 0", "prompt 0", "prompt 1"] and set(batch) == {
        "image",
        "label",
        "prompt",
        "index",
        "columns",
    }
    with pytest.raises(ValueError, match="rows of a stream cannot be counted before training"):
        PickAPic(str(tmp_path / "train.parquet"), binary=True, streaming=True)


def test_unlabelled_rows_and_text_labels(tmp_path):
    rows = [row("p", RED, BLUE, label, "m", 0, 0) for label in (1.0, 0.0, 1.0)]
    for r, label, has in zip(rows, ("1.0", "0", "0.5"), ("True", "True", "False")):
        r.update(label_0=label, label_1="", has_label=has)
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    assert len(PickAPic(str(tmp_path), resolution=8).load("train")) == 2


def test_what_is_left_out_is_counted(tmp_path):
    data = PickAPic(pick_a_pic(tmp_path / "train.parquet", [1.0, 0.5, 0.5]), resolution=8)
    for _ in range(2):
        data.load("train")
        assert data.summary() == "train: 3 pairs, 2 ties, 1 kept"


def test_splits_of_a_folder_are_not_mixed(tmp_path):
    for name, n in (("validation-00000-of-00002", 1), ("validation-00001-of-00002", 2), ("validation_unique-00000", 4)):
        pick_a_pic(tmp_path / f"{name}.parquet", [1.0] * n)
    assert len(PickAPic(str(tmp_path), split="validation").load("train")) == 3
    assert len(PickAPic(str(tmp_path), val_split="validation_unique").load("val")) == 4
    assert len(PickAPic(str(tmp_path / "validation-*.parquet")).load("train")) == 3
    with pytest.raises(FileNotFoundError, match="has no train.parquet, train-"):
        PickAPic(str(tmp_path)).load("train")


@pytest.mark.parametrize("broken", [b"not an image", RED[:40], picture((1, 2, 3), (64, 64), "JPEG")[:400], b"", None])
def test_an_unreadable_image_is_an_error_with_its_row_in_the_file(tmp_path, broken):
    rows = [row("tie", RED, BLUE, 0.5, "m", 0, 0), row("p", RED, b"", 1.0, "m", 1, 0) | {"jpg_1": broken}]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    data = PickAPic(str(tmp_path / "train.parquet"), resolution=8)
    with pytest.raises(ValueError, match="row 1, column jpg_1 of .*train.parquet holds no readable image"):
        data.collate([data.load("train")[0]])


def test_unreadable_rows_can_be_skipped_and_are_told(tmp_path):
    images = [(RED, RED), (RED, BLUE), (RED, RED[:40]), (BLUE, RED)]
    rows = [row(p, *pair, y, "m", 0, 0) for p, pair, y in zip("abcd", images, (0.5, 1.0, 1.0, 1.0))]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.warns(UserWarning, match=r"1 of 3 rows hold an unreadable image and are skipped: \[2\]"):
        kept = PickAPic(str(tmp_path), resolution=8, on_corrupt="skip").load("train")
    assert kept["prompt"] == ["b", "d"] and kept["index"] == [1, 3]


def test_what_a_stream_cannot_do_is_an_error(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    with pytest.raises(ValueError, match="on_corrupt: error"):
        PickAPic(path, streaming=True, on_corrupt="skip")


def test_a_missing_column_is_named_with_those_found(tmp_path):
    Dataset.from_dict({"caption": ["a"], "label_0": [1.0]}).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(ValueError, match="column `jpg_0` not found .* columns are caption, label_0"):
        PickAPic(str(tmp_path / "x.parquet")).load("train")


def test_a_dataset_that_was_removed_is_said_with_its_copies():
    with pytest.raises(FileNotFoundError, match="copies are liuhuohuo2/pick-a-pic-v2, .* set --data.path"):
        PickAPic().load("train")


def test_a_stream_has_its_columns_and_names_a_null_caption(tmp_path):
    rows = [row(p, RED, BLUE, 1.0, "m", 0, 0) | {"topic": "t"} for p in ("a", None)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    data = PickAPic(str(tmp_path / "train.parquet"), resolution=8, streaming=True)
    assert "topic" in data.column_names("train") and "jpg_0" not in data.column_names("train")
    with pytest.raises(ValueError, match="row 1 of .*train.parquet has the caption None: give one text"):
        for example in data.load("train"):
            data.collate([example])
    with pytest.raises(ValueError, match="row 1, column caption of .*train.parquet is empty"):
        PickAPic(str(tmp_path / "train.parquet"), resolution=8).load("train")


def test_held_out_pairs_beside_a_stream_are_streamed_too(tmp_path, monkeypatch):
    """The hub gives a split without the others only as a stream; what was read is then a table like any other."""
    file, asked = pick_a_pic(tmp_path / "a.parquet", [1.0, 0.0, 0.5]), []

    def hub(path, *args, split, streaming, revision):
        asked.append((split, streaming))
        return load_dataset("parquet", data_files=file, split="train", streaming=streaming)

    monkeypatch.setattr("lit_align.data.tables.load_dataset_of", hub)
    data = PickAPic("owner/name", val_split="validation_unique", streaming=True, resolution=8)
    assert data.load("val")["prompt"][:] == ["prompt 0", "prompt 1"]
    assert next(iter(data.load("train")))["prompt"] in ("prompt 0", "prompt 1")
    assert asked == [("validation_unique", True), ("train", True)]


def test_fields_of_a_webdataset_that_are_text(tmp_path):
    """"False" is false, "0.5" is a tie, and keys that repeat in every shard tell no rows apart."""
    published.pick_a_pic_columns(tmp_path)
    data = PickAPic(str(tmp_path), resolution=8)
    assert data.load("train")["prompt"] == ["a lake 0", "a lake 1", "a lake 2"]
    assert data.summary() == "train: 4 pairs, 1 without label, 3 kept"
    (tmp_path / "x").mkdir()
    published.pick_a_pic_webdataset(tmp_path / "x")
    rows = PickAPic(str(tmp_path / "x"), ties="keep", resolution=8).load("train")
    assert rows["prompt"] == [f"a tree {s} {i}" for s in (0, 1) for i in range(3)] and rows["label"] == [1.0, 0.0, 0.5] * 2
    with pytest.raises(ValueError, match="binary labels need the columns image_0_uid"):
        PickAPic(str(tmp_path / "x"), binary=True).load("train")


def test_a_copy_without_images(tmp_path):
    published.pick_a_pic_no_images(tmp_path)
    with pytest.raises(ValueError, match="has no images: set --data.images .* or read its captions by --data Prompts"):
        PickAPic(str(tmp_path)).load("train")
    assert read_prompts(str(tmp_path / "train-00000-of-00001.parquet"))["prompt"] == [f"a hill {i}" for i in range(4)]
    (tmp_path / "uids/v2.png").unlink()
    with pytest.raises(FileNotFoundError, match="row 2, column jpg_1 of .* there is no file .*uids/v2"):
        PickAPic(str(tmp_path), images=str(tmp_path / "uids")).load("train")
    with pytest.warns(UserWarning, match=r"skipped: \[2\]"):
        rows = PickAPic(str(tmp_path), images=str(tmp_path / "uids"), on_corrupt="skip", resolution=8).load("train")
    assert rows["prompt"] == ["a hill 0", "a hill 1", "a hill 3"]
