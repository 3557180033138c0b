import json
from collections import Counter

import pytest
from data_parts import trainer
from datasets import Dataset

from lit_align.cli import main
from lit_align.data.prompts import Prompts
from lit_align.data.tables import read_prompts


def test_prompts_that_do_not_fill_a_batch_are_drawn_again(tmp_path, many):
    """As published recipes ask for: 45 animals, 256 samples at once."""
    data = Prompts(many, batch_size=64)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(batch["prompt"]) == 64 and batch["prompt"] == [f"prompt {i}" for i in batch["index"]]
    times = Counter(batch["prompt"]).values()
    assert len(times) >= 22 and max(times) <= 3  # of 23, of which there are 69


GENEVAL = [
    {"tag": "position", "include": [{"class": "laptop", "count": 1}, {"class": "cow", "count": 1, "position": ["right of", 0]}], "prompt": "a photo of a cow right of a laptop"},
    {"tag": "counting", "include": [{"class": "bus", "count": 2}], "exclude": [{"class": "bus", "count": 3}], "prompt": "a photo of two buses"},
]
GENAI = {"00000": {"id": "00000", "prompt": "a", "models": {"DALLE_3": [5, 4, 5]}}, "00001": {"id": "00001", "prompt": "b", "models": {"DALLE_3": [1, 2, 3]}}}
SETS = {  # the published file -> the prompts, and a further column
    "PartiPrompts.tsv": ('Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology-inspired concepts\na "red" fox, left\tAnimals\tWriting & Symbols\t\n', ["bond", 'a "red" fox, left'], {"Category": ["Abstract", "Animals"]}),
    "drawbench.csv": ('Prompts,Category\n"a red car, left of a sheep.",Colors\n', ["a red car, left of a sheep."], {"Category": ["Colors"]}),
    "anime.json": (json.dumps(["a", "b, c"]), ["a", "b, c"], {}),
    "benchmark_Animals.json": (json.dumps([{"prompt": "a", "category": "Animals"}]), ["a"], {"category": ["Animals"]}),
    "evaluation_metadata.jsonl": ("\n".join(map(json.dumps, GENEVAL)), [row["prompt"] for row in GENEVAL], {"include": [row["include"] for row in GENEVAL], "exclude": [None, GENEVAL[1]["exclude"]]}),
    "color_val.txt": ("a red book\na blue bowl", ["a red book", "a blue bowl"], {}),
    "genai_image.json": (json.dumps(GENAI), ["a", "b"], {"id": ["00000", "00001"], "models": [{"DALLE_3": [5, 4, 5]}, {"DALLE_3": [1, 2, 3]}]}),
    "ocr.txt": ('a sign that says "Open"\n', ['a sign that says "Open"'], {}),
    "coco_30k.csv": ("id,image_id,caption\n1,2,A man.\n", ["A man."], {"image_id": [2]}),
    "metadata.json": ('{"caption": "a", "trainset_idx": 4}\n{"caption": "b", "trainset_idx": 9}\n', ["a", "b"], {"trainset_idx": [4, 9]}),
}


@pytest.mark.parametrize("name", SETS)
def test_published_prompt_files_are_read_as_they_are(tmp_path, name):
    text, expected, columns = SETS[name]
    (tmp_path / name).write_text(text)
    rows = read_prompts(str(tmp_path / name))
    assert rows["prompt"] == expected and rows["index"] == list(range(len(expected)))
    assert {key: rows[f"columns.{key}"][:] for key in columns} == columns


def test_a_file_for_each_prompt(tmp_path):
    (tmp_path / "prompts").mkdir()
    for name, text in (("b_2", "two\nlines\n"), ("a_1", "one")):
        (tmp_path / f"prompts/{name}.txt").write_text(text)
    rows = read_prompts(str(tmp_path / "prompts"))
    assert rows["prompt"] == ["one", "two\nlines"] and rows["columns.file_name"] == ["a_1", "b_2"]


def test_the_columns_name_is_said_and_can_be_given(tmp_path, caplog):
    (tmp_path / "p.csv").write_text("caption,other\na,b\n")
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert read_prompts(str(tmp_path / "p.csv"))["prompt"] == ["a"]
    assert "p.csv: the prompts are column `caption`" in caplog.text
    assert Prompts(str(tmp_path / "p.csv"), column="other").load("train")["prompt"] == ["b"]
    Dataset.from_dict({"Prompts": ["x"]}).to_parquet(tmp_path / "p.parquet")
    assert Prompts(str(tmp_path / "p.parquet")).load("train")["prompt"] == ["x"]


def test_rows_words_and_repetitions(tmp_path):
    """DDPO's choice of ImageNet's classes, and Flow-GRPO's of Pick-a-Pic's captions."""
    (tmp_path / "c.txt").write_text("\n".join(["one two three", "a", "one two three", "b c d", "e f g"]))
    data = Prompts(str(tmp_path / "c.txt"), rows=(0, 4), unique=True, min_words=3)
    assert data.load("train")["prompt"] == ["one two three", "b c d"]
    assert data.summary() == "train: 5 rows, 1 outside of `rows`, 1 of fewer than 3 words, 1 repeated, 2 kept"
    with pytest.raises(ValueError, match="no prompt of .*c.txt is left"):
        Prompts(str(tmp_path / "c.txt"), min_words=9).load("train")


def test_prompts_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("anime.json", "PartiPrompts.tsv"):
        (tmp_path / name).write_text(SETS[name][0])
    tiny = "--model Sampling --model.policy StableDiffusion --model.policy.pretrained tiny --model.policy.resolution 32 --model.sampler.steps 1".split()
    quiet = "--trainer.accelerator cpu --trainer.logger false --trainer.enable_progress_bar false --data.val_batch_size 2".split()
    for name in ("anime.json", "PartiPrompts.tsv"):
        main(["predict", *tiny, "--data", "Prompts", "--data.path", "none.txt", "--data.test_prompts", name, *quiet])
        lines = [json.loads(line) for line in (tmp_path / "checkpoints/run/predict/metadata.jsonl").read_text().splitlines()]
        assert [line["prompt"] for line in lines] == SETS[name][1]
