"""Tables and prompt files: what is read, and what is said of a file that cannot be."""

import json

import pytest

from lit_align.data.tables import read_prompts, read_table


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffa red circle\n\ntwo squares\n", "utf-8")
    rows = read_prompts(str(tmp_path / "p.txt"))
    assert rows["prompt"] == ["a red circle", "two squares"] and rows["index"] == [0, 2]
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "skill": "s", "other": 1}\n')
    row = read_prompts(str(tmp_path / "p.jsonl"))[0]
    file = str(tmp_path / "p.jsonl")
    assert row == {"prompt": "x", "columns.skill": "s", "columns.other": 1, "index": 0, "file": file}
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_prompts("nowhere.txt")
    with pytest.raises(ValueError, match="ends in '.doc'"):
        (tmp_path / "p.doc").write_text("")
        read_prompts(str(tmp_path / "p.doc"))


def test_cells_of_a_jsonl_file_stay_as_they_are(tmp_path):
    cells = [
        {"include": [{"class": "bench", "count": 1}, {"class": "dog", "color": "red"}], "n": 1, "source": None, "x": 1},
        {"include": [], "n": None, "source": "a.png", "x": "one"},
        {"include": [{"class": "cat"}], "n": 3, "tag": {"a": [1]}, "x": [1, 2]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(c | {"prompt": "p"}) for c in cells))
    rows = read_prompts(str(tmp_path / "p.jsonl"))
    for name in ("include", "n", "source", "x", "tag"):
        assert rows[f"columns.{name}"][:] == [c.get(name) for c in cells]


def test_words_and_numbers_of_a_csv(tmp_path):
    text = 'prompt,n,x\n"None",1,1.5\nNA,,2\nnull,3,\n"a, b",4,0\n'
    (tmp_path / "p.csv").write_text(text)
    rows = read_prompts(str(tmp_path / "p.csv"))
    assert rows["prompt"] == ["None", "NA", "null", "a, b"]
    assert rows["columns.n"] == [1, None, 3, 4] and rows["columns.x"] == [1.5, 2.0, None, 0.0]


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.jsonl"])
def test_a_latin_1_file_is_read_and_said(tmp_path, name):
    text = {"p.csv": "prompt\ncafé\n", "p.txt": "café\n", "p.jsonl": '{"prompt": "café"}\n'}[name]
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.warns(UserWarning, match=f"{name} is not UTF-8 .* read as Latin-1"):
        assert read_prompts(str(tmp_path / name))["prompt"] == ["café"]


BROKEN = {
    "empty.csv": ("", "empty.csv is empty"),
    "head.csv": ("prompt,win,lose\n", "head.csv has no rows"),
    "blank.txt": ("\n\n", "blank.txt has no prompts"),
    "ragged.csv": ("prompt,a\nx,1\ny,1,2,3\n", "ragged.csv is not a CSV: .*line 3"),
    "line.jsonl": ('{"prompt": "a"}\n{"prompt": "b"\n', "line 2 of .*line.jsonl is not JSON"),
    "list.jsonl": ('{"prompt": "a"}\n["b"]\n', "line 2 of .*list.jsonl is not a JSON object"),
    "whole.json": ('[{"prompt": "a"},\n{"prompt" "b"}]', "line 2 of .*whole.json is not JSON"),
    "null.jsonl": ('{"prompt": "a"}\n{"prompt": null}\n', "row 1, column prompt of .*null.jsonl is empty"),
    "list_cell.jsonl": (
        '{"prompt": ["a", "b"]}\n',
        r"row 0, column prompt of .* holds .*'a', 'b'.* \(list\): give one",
    ),
    "number.csv": (
        "prompt\n3\n4\n",
        r"row 0, column prompt of .*number.csv holds '3' \(int\): give one caption as text",
    ),
    "hole.csv": ("prompt,n\na,1\n,2\n", "row 1, column prompt of .*hole.csv is empty: give one caption as text"),
    "other.csv": ("words,n\na,1\n", "column `prompt` not found in .*other.csv; columns are words, n"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, name):
    text, said = BROKEN[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_prompts(str(tmp_path / name))


def test_utf_16_is_named(tmp_path):
    (tmp_path / "p.csv").write_bytes("prompt\na\n".encode("utf-16"))
    with pytest.raises(ValueError, match="p.csv is UTF-16: save it as UTF-8"):
        read_table(str(tmp_path / "p.csv"))


def test_a_path_that_is_nothing_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (str(tmp_path / "folder"), "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match=f"{path} is neither a file, nor a folder with data, nor a dataset"):
            read_table(path)
