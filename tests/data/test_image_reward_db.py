import zipfile

import published
import pytest

from lit_align.data.image_reward_db import ImageRewardDB


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "db").mkdir()
    return published.image_reward_db(tmp_path / "db")


def test_prompts_of_one_archive_do_not_mix_and_keep_their_order(folder):
    data = ImageRewardDB(path=str(folder), size="1k", list_size=4, resolution=8)
    rows = data.load("train")
    assert rows["prompt"][:4] == ["a house 1 0", "a house 1 1", "a house 2 0", "a house 2 1"]
    names = [[path.rsplit("/", 1)[1] for path in images] for images in rows["images"][:2]]
    assert names == [[f"1{p}{k}-uuid.webp" for k in range(4)] for p in (0, 1)]
    assert rows["scores"][0] == [[-1], [-2], [-2], [-3]]
    pairs = ImageRewardDB(path=str(folder), size="1k", resolution=8).load("train")
    assert all(a.rsplit("/", 1)[1][:2] == b.rsplit("/", 1)[1][:2] for a, b in zip(pairs["image_0"], pairs["image_1"]))
    assert pairs["prompt"][:].count("a house 1 0") == 5  # of ranks 1, 2, 2, 3


def test_ratings_beside_the_rank(folder):
    data = ImageRewardDB(path=str(folder), size="1k", list_size=4, dimensions={"overall_rating": 1.0, "image_text_alignment_rating": 0.5}, resolution=8)
    assert data.collate([data.load("train")[0]])["scores"].tolist() == [[[6, 3], [5, 2.5], [5, 2], [4, 1.5]]]


def test_splits_sizes_and_folders_that_are_unpacked_already(folder):
    assert len(ImageRewardDB(path=str(folder), split="validation", resolution=8).load("train")) == 2 * 2 * 5
    with pytest.raises(FileNotFoundError, match="has neither train_5.zip nor train_5/train_5.json.*zai-org/ImageRewardDB"):
        ImageRewardDB(path=str(folder), size="2k").load("train")
    with pytest.raises(ValueError, match="data.split is dev; ImageRewardDB has train, validation, test"):
        ImageRewardDB(path=str(folder), split="dev").load("train")
    for file in (folder / "images/test").glob("*.zip"):
        zipfile.ZipFile(file).extractall(file.with_suffix(""))
        file.unlink()
    rows = ImageRewardDB(path=str(folder), split="test", resolution=8).load("train")
    assert len(rows) == 20 and str(folder / "images/test/test_1") in rows["image_0"][0]
