import pytest

from lit_align.data.tables import read_prompts


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("a red circle\n\ntwo squares\n")
    assert read_prompts(str(tmp_path / "p.txt"))["prompt"] == ["a red circle", "two squares"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "skill": "s", "other": 1}\n')
    row = read_prompts(str(tmp_path / "p.jsonl"))[0]
    assert row == {
        "prompt": "x",
        "columns.skill": "s",
        "columns.other": 1,
        "index": 0,
        "file": str(tmp_path / "p.jsonl"),
    }
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_prompts("nowhere.txt")
    with pytest.raises(ValueError, match="ends in '.doc'"):
        (tmp_path / "p.doc").write_text("")
        read_prompts(str(tmp_path / "p.doc"))
