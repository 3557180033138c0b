import published
import pytest

from lit_align.data.diffusion_db import DiffusionDB
from lit_align.data.tables import read_prompts


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_nsfw_scores_leave_rows_out(tmp_path):
    published.diffusion_db(tmp_path)
    kept = lambda limit: DiffusionDB(path=str(tmp_path), max_nsfw=limit, resolution=8).load("train")["prompt"][:]
    assert kept(0.5) == ["a road 0", "a road 1"] and kept(0.3) == ["a road 0"] and len(kept(1.0)) == 3 and len(kept(None)) == 4
    rows = DiffusionDB(path=str(tmp_path), resolution=8).load("train")
    assert rows["columns.seed"] == [7, 8] and rows["columns.sampler"] == ["k_lms"] * 2 and rows["columns.cfg"] == [7.0] * 2


def test_the_table_of_scores_is_asked_for_where_it_is_missing(tmp_path):
    published.diffusion_db(tmp_path)
    (tmp_path / "metadata.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="has no metadata.parquet with the NSFW scores: add it, or set --data.max_nsfw null"):
        DiffusionDB(path=str(tmp_path)).load("train")
    assert len(DiffusionDB(path=str(tmp_path), max_nsfw=None, resolution=8).load("train")) == 4


def test_a_part_that_is_missing(tmp_path):
    published.diffusion_db(tmp_path)
    with pytest.raises(FileNotFoundError, match="part-000002.zip are missing: lower --data.parts. DiffusionDB is poloclub/diffusiondb"):
        DiffusionDB(path=str(tmp_path), parts=2).load("train")
    with pytest.raises(ValueError, match="holds archives, not parquet files: set streaming: false"):
        DiffusionDB(path=str(tmp_path), streaming=True).load("train")


def test_its_prompts_alone(tmp_path):
    published.diffusion_db(tmp_path)
    assert read_prompts(str(tmp_path / "metadata.parquet"))["prompt"] == [f"a road {i}" for i in range(4)]
