import json

import pytest
from published import tar, zipped

from lit_align.data.archives import image_folder, local_folder, unpacked
from lit_align.data.hpd_v2 import HPDv2
from lit_align.data.hpd_v3 import HPDv3

FILES = {"images/a.jpg": b"1" * 5000, "images/b/c.jpg": b"2" * 3000}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.gz.00"])
def test_an_archive_is_unpacked_once(tmp_path, kind, caplog):
    file = tmp_path / f"x.{kind}"
    files = [file]
    zipped(file, FILES) if kind == "zip" else tar(file, FILES, "w" if kind == "tar" else "w:gz")
    if kind.endswith("00"):
        data = file.read_bytes()
        files = [tmp_path / f"x.tar.gz.{k:02d}" for k in range(4)]
        for k, part in enumerate(files):
            part.write_bytes(data[k * len(data) // 4 : (k + 1) * len(data) // 4])
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        folder = unpacked(files)
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES
        assert unpacked(files) == folder and caplog.text.count("are unpacked, once, into") == 1
    tar(files[-1], FILES) if kind == "tar" else files[-1].write_bytes(files[-1].read_bytes() + b"\0")
    assert unpacked(files) != folder


def test_images_lie_in_the_folder_or_in_its_archives(tmp_path):
    tar(tmp_path / "images.tar", FILES)
    inside = image_folder(tmp_path, ["gone.jpg", "b/c.jpg"], ("images",), "images.tar*")
    assert (inside / "a.jpg").is_file() and tmp_path / "cache" in inside.parents
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"")
    assert image_folder(tmp_path, ["a.jpg"], ("images",), "images.tar*") == tmp_path / "images"
    with pytest.raises(FileNotFoundError, match="has no image gone.jpg, and no archive images.tar. that holds it"):
        image_folder(tmp_path, ["gone.jpg"], ("images",), "images.tar*")


def test_nothing_is_written_outside_of_the_folder(tmp_path):
    tar(tmp_path / "evil.tar", {"../../escaped": b"x"})
    with pytest.raises(ValueError, match="is no archive, or is cut off"):
        unpacked([tmp_path / "evil.tar"])
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("content", [b"no archive", None])
def test_a_broken_archive_is_one_sentence_and_tried_again(tmp_path, content):
    file = tmp_path / "x.tar.gz"
    tar(file, FILES, "w:gz")
    whole = file.read_bytes()
    file.write_bytes(content or whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="x.tar.gz is no archive, or is cut off .*: download it again"):
        unpacked([file])
    file.write_bytes(whole)
    assert (unpacked([file]) / "images/a.jpg").is_file()


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "train.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 116\n")
    with pytest.raises(ValueError, match="train.json is a pointer of Git LFS, not the data: run `git lfs pull`"):
        HPDv2(path=str(tmp_path)).load("train")


@pytest.mark.parametrize("text, said", [
    ('[{"prompt": "a"}, {"prompt"', "train.json is not JSON .line 1: .*: download it again"),
    ("{}", "train.json is no list of records"),
    ('[{"prompt": "a", "path1": "x", "path2": "y"}, {"prompt": "b", "path1": "x"}]', "record 1 of .*train.json has no path2"),
])  # fmt: skip
def test_a_broken_list_of_records_is_one_sentence(tmp_path, text, said):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        HPDv3(path=str(tmp_path)).load("train")
    with pytest.raises(FileNotFoundError, match="has no test.json. HPD v3 is MizzenAI/HPDv3"):
        HPDv3(path=str(tmp_path), split="test").load("train")


def test_the_files_of_a_hub_dataset_are_asked_for_with_its_revision(tmp_path, monkeypatch):
    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "train.json").write_text(json.dumps([]))
    assert local_folder("owner/name", ("train.json",), "abc", "") == tmp_path
    assert asked == {"repo": "owner/name", "repo_type": "dataset", "revision": "abc", "allow_patterns": ["train.json"]}
