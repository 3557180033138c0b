import published
import pytest
from data_parts import RED
from datasets import Dataset

from lit_align.data.rich_hf import RichHF18K


def load(path, **options):
    data = RichHF18K(path=str(path), resolution=16, **options)
    rows = data.load("train")
    return data, data.collate([rows[i] for i in range(len(rows))])


def test_records_are_joined_with_pick_a_pic_by_uid(tmp_path):
    published.rich_hf(tmp_path)
    data, batch = load(tmp_path, pick_a_pic=str(tmp_path / "pick_a_pic"))
    assert [published.redness(image) for image in batch["image"]] == [1, 0, 1, 0]  # u0, v1, u2, v3
    assert batch["prompt"] == [f"a hill {i}" for i in range(4)] and batch["index"] == [0, 1, 2, 3]
    assert batch["scores"].tolist() == [[0.25 + i / 8, 0.5, 0.75, 1.0] for i in range(4)]
    assert batch["maps"].shape == (4, 2, 16, 16) and batch["maps"][:, 0].max() == 0
    assert batch["maps"][:, 1].unique().tolist() == pytest.approx([0.2])
    assert batch["columns"]["prompt_misalignment_label"] == [[1, 0, 1]] * 4
    assert data.summary() == "train: 5 rows, 1 without an image, 4 kept"
    assert data.load("train")._data.num_rows == 8  # Pick-a-Pic's rows twice: its images are not copied


def test_images_in_a_folder_beside_captions_without_images(tmp_path):
    published.rich_hf(tmp_path)
    (tmp_path / "captions").mkdir()
    published.pick_a_pic_no_images(tmp_path / "captions")
    (tmp_path / "captions/uids/u2.jpg").unlink()
    data, batch = load(tmp_path, pick_a_pic=str(tmp_path / "captions"), images=str(tmp_path / "captions/uids"), split="dev")
    assert batch["index"] == [0, 1, 3] and batch["prompt"] == ["a hill 0", "a hill 1", "a hill 3"]
    assert [published.redness(image) for image in batch["image"]] == [1, 0, 0]


def test_copies_in_parquet(tmp_path):
    for name, options in (("with", {}), ("without", {"pick_a_pic": str(tmp_path / "r/pick_a_pic")})):
        (tmp_path / name).mkdir()
        published.rich_hf_parquet(tmp_path / name, with_images=name == "with")
    (tmp_path / "r").mkdir()
    published.rich_hf(tmp_path / "r")
    _, one = load(tmp_path / "with", scores=["overall_score", "artifact_score"])
    _, other = load(tmp_path / "without", **options)
    assert one["scores"].tolist() == [[1.0, 0.5]] * 4 and one["prompt"] == ["a red hill"] * 4
    assert one["columns"]["prompt_misalignment_label"] == other["columns"]["prompt_misalignment_label"] == [[1, 0, 1]] * 4
    assert other["prompt"] == [f"a hill {i}" for i in range(4)] and (one["maps"] == other["maps"]).all()


def test_what_is_wrong_is_one_sentence(tmp_path):
    published.rich_hf(tmp_path)
    with pytest.raises(ValueError, match="holds neither images nor prompts: set --data.pick_a_pic"):
        RichHF18K(path=str(tmp_path)).load("train")
    with pytest.raises(ValueError, match="RichHF-18K has no score beauty; it has aesthetics_score"):
        RichHF18K(path=str(tmp_path), scores=["beauty"])
    strangers = [row | {"image_0_uid": "x", "image_1_uid": "y"} for row in published.pick_a_pic_rows(2)]
    Dataset.from_list(strangers).to_parquet(tmp_path / "strangers.parquet")
    with pytest.raises(ValueError, match="none of 5 images is in .*strangers.parquet: RichHF-18K's are those of Pick-a-Pic v1"):
        RichHF18K(path=str(tmp_path), pick_a_pic=str(tmp_path / "strangers.parquet")).load("train")
    (tmp_path / "train.tfrecord").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="train.tfrecord is a pointer of Git LFS"):
        RichHF18K(path=str(tmp_path), pick_a_pic=str(tmp_path / "pick_a_pic")).load("train")
    with pytest.raises(FileNotFoundError, match="copies are Exploration/richhf-18k, .*set --data.path"):
        RichHF18K(path="nobody/nothing").load("train")


def test_scores_that_are_missing_or_of_another_scale(tmp_path):
    rows = [row | {"image": RED, "caption": "c"} for row in published.rich_hf_rows(3)]
    rows[1]["overall_score"] = None
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    data, batch = load(tmp_path / "train.parquet")
    assert batch["index"] == [0, 2] and data.summary() == "train: 3 rows, 1 without a score, 2 kept"
    Dataset.from_list([row | {"artifact_score": 4.0} for row in rows]).to_parquet(tmp_path / "five.parquet")
    with pytest.raises(ValueError, match="five.parquet holds the score 4.0; RichHF-18K's are from 0 to 1"):
        RichHF18K(path=str(tmp_path / "five.parquet")).load("train")
    Dataset.from_list([{k: v for k, v in row.items() if k != "overall_score"} for row in rows]).to_parquet(tmp_path / "three.parquet")
    with pytest.raises(ValueError, match="three.parquet has no overall_score: leave it out of --data.scores"):
        RichHF18K(path=str(tmp_path / "three.parquet")).load("train")
    assert load(tmp_path / "three.parquet", scores=["artifact_score"])[1]["scores"].shape == (3, 1)
