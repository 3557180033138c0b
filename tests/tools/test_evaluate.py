"""`evaluate`: folders and configs, alone and side by side, its files and its page."""

import json
from html.parser import HTMLParser

import pytest
import torch
from metric_parts import CSV, folder_of, images, written
from PIL import Image

from lit_align.cli import main
from lit_align.paths import ROOT

EVIL = '<script>alert("x")</script> & a "red" circle'
DARK = """
metrics:
  - {class_path: MeanReward, init_args: {reward: {class_path: JPEGCompressibility}}}
"""
QUIET = "[--trainer.accelerator=cpu,--trainer.enable_progress_bar=false,--trainer.enable_model_summary=false]"


def predicted(folder, x, prompts):
    """A folder as `predict` writes it."""
    folder_of(x, folder)
    lines = [{"file_name": f"{i:05d}.png", "prompt": prompt, "seed": i} for i, prompt in enumerate(prompts)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(DARK)
    return tmp_path


def evaluate(*words):
    main(["evaluate", *words, "--device", "cpu"])


def refused(capsys, *words):
    with pytest.raises(SystemExit):
        evaluate(*words)
    return capsys.readouterr().err.strip().splitlines()[-1]


class Reader(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_folder_is_measured_alone(place, capsys):
    predicted(place / "a", images(5), [EVIL, "two", "two", "four", "five"])
    evaluate("a", "--config", "mine.yaml")
    said = capsys.readouterr().out
    found = json.loads((place / "a/evaluate/results.json").read_text())
    records = [json.loads(line) for line in (place / "a/evaluate/results.jsonl").read_text().splitlines()]
    scores = [record["scores"][0]["compressibility"] for record in records]
    assert found["images"] == 5 and found["prompts"] == 4 and found["win_rate"] == {}
    mean = (scores[0] + (scores[1] + scores[2]) / 2 + scores[3] + scores[4]) / 4
    assert found["sides"][0]["metrics"]["compressibility"] == pytest.approx(mean, rel=1e-5)
    assert "| compressibility |" in said and (place / "a/evaluate/results.md").read_text() in said
    assert Image.open(place / "a/evaluate/sheet.png").size[0] > 0
    page = Reader((place / "a/evaluate/index.html").read_text())
    assert [tag for tag, _ in page.tags].count("article") == 5 and [tag for tag, _ in page.tags].count("script") == 1
    assert EVIL in page.text  # as text, not as a tag
    sources = [attrs["src"] for tag, attrs in page.tags if "src" in attrs]
    assert len(sources) == 5 and all(s.startswith("data:image/webp;base64,") for s in sources)
    assert not any("http" in str(attrs) and tag != "meta" for tag, attrs in page.tags)


def test_prompts_that_a_reward_cuts_are_counted(place, capsys):
    predicted(place / "a", images(2), ["short", "long " * 90])
    evaluate("a", "--metrics", "[{class_path: MeanReward, init_args: {reward: {class_path: CLIPScore, init_args: {pretrained: tiny}}}}]")
    assert json.loads((place / "a/evaluate/results.json").read_text())["truncated"] == {"clip_score": 1}
    assert "clip_score did not read the end of 1 of 2 prompts" in capsys.readouterr().out


def test_two_folders_side_by_side(place):
    x, prompts = images(6), ["one", "one", "two", "two", "three", "three"]
    flat = x.mean((2, 3), keepdim=True).expand_as(x)  # easier to compress
    predicted(place / "a", torch.cat([flat[:4], x[4:]]), prompts)
    predicted(place / "b", torch.cat([x[:4], flat[4:]]), prompts)
    evaluate("a", "--against", "b", "--config", "mine.yaml", "--out", "both", "--batch_size", "4")
    found = json.loads((place / "both/results.json").read_text())
    rate = found["win_rate"]["compressibility"]
    assert rate["win_rate"] == pytest.approx(2 / 3) and rate["prompts"] == 3 and rate["low"] < 2 / 3 < rate["high"]
    assert [side["name"] for side in found["sides"]] == ["a", "b"]
    page = Reader((place / "both/index.html").read_text())
    better = [attrs["data-better"] for tag, attrs in page.tags if tag == "article"]
    assert better == ["first"] * 4 + ["second"] * 2
    marked = [attrs.get("class") for tag, attrs in page.tags if tag == "img"]
    assert marked == ["better", None] * 4 + [None, "better"] * 2
    predicted(place / "c", x, ["other"] * 6)
    with pytest.raises(SystemExit):
        evaluate("a", "--against", "c", "--config", "mine.yaml")


def test_columns_come_from_the_prompts_and_mistakes_are_named(place, capsys):
    predicted(place / "a", images(4), ["one", "one", "two", "two"])
    (place / "p.jsonl").write_text('{"prompt": "one", "spec": 1}\n{"prompt": "two", "spec": 2}\n')
    shapes = place / "shapes.yaml"
    shapes.write_text("metrics: [{class_path: MeanReward, init_args: {reward: {class_path: GenEval, init_args: {pretrained: tiny}}}}]")
    assert "nothing to measure" in refused(capsys, "a", "--metrics", "[]")
    assert "the metric geneval needs the column `include`" in refused(capsys, "a", "--config", "shapes.yaml")
    assert "there is no config" in refused(capsys, "a", "--config", "absent.yaml")
    assert "lacks 4 of 8 images, the first is number 4" in refused(capsys, "a", "--config", "mine.yaml", "--prompts", "p.jsonl", "--per_prompt", "4")
    said = refused(capsys, "a", "--config", "mine.yaml", "--prompts", "p.jsonl")
    assert "image 1 of a is of 'one', and the prompts have 'two' there" in said and "--per_prompt" in said
    evaluate("a", "--config", "mine.yaml", "--prompts", "p.jsonl", "--per_prompt", "2")
    evaluate("a", "--config", "mine.yaml", "--prompts", "p.jsonl", "--per_prompt", "2", "--limit", "1")
    assert json.loads((place / "a/evaluate/results.json").read_text())["images"] == 2
    (place / "b").mkdir()
    assert "b has no metadata.jsonl" in refused(capsys, "b", "--config", "mine.yaml")


def test_a_config_is_sampled_first_with_seeds_of_its_own_for_each_image(place, capsys):
    """The README's command on a few prompts: steps of one model against the same with more steps."""
    words = ["shapes/dpo", "--config", "evaluate/shapes", "--limit", "2", "--per_prompt", "2"]
    evaluate(*words, "--against", "shapes/ipo", "--flags", QUIET[:-1] + ",--model.sampler.steps=2]")
    out = place / "evaluations/shapes-dpo"
    lines = [json.loads(line) for line in (out / "images/metadata.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2, 3] and lines[0]["prompt"] == lines[1]["prompt"] != lines[2]["prompt"]
    found = json.loads((out / "results.json").read_text())
    assert {"exact", "distance_proxy/within", "distance_proxy/all", "vendi_proxy"} <= found["sides"][0]["metrics"].keys()
    assert found["win_rate"]["exact"]["win_rate"] == 0.5  # both are the same base model on the same seeds
    assert found["sides"][0]["metrics"] == found["sides"][1]["metrics"]
    assert (out / "images/00000.png").read_bytes() == (out / "against/00000.png").read_bytes() != (out / "images/00001.png").read_bytes()


RECIPES = sorted(path.stem for path in (ROOT / "configs/evaluate").glob("*.yaml") if path.stem != "shapes")  # that one is run above


def published(place, name):
    """The files of a recipe's benchmark, two prompts each, in the formats of their owners; the file of prompts."""
    rows = [{"prompt": "a red dog next to a cat"}, {"prompt": "a blue bike in front of a car"}]
    more = {"include": [{"class": "dog", "count": 1, "color": "red"}], "tag": "colors", "phrases": ["a red dog"], "kind": "both", "id": "coco_1", "file_name": "p0"}
    more["objects"] = [{"shape": "dog", "relation": "left_0"}, {"shape": "bike", "relation": "left_0"}] if "paintskills" in name else ["one dog", "two cat"] if "numeracy" in name else ["dog", "cat"]
    file = written(place, "p.jsonl", "".join(json.dumps(row | more) + "\n" for row in rows))
    written(place / "ELLA/dpg_bench", "dpg_bench.csv", CSV)
    written(place / "GenAI-Bench-1600", "genai_image.json", json.dumps({f"{i:05d}": {"prompt": row["prompt"], "models": {}} for i, row in enumerate(rows)}))
    written(place / "GenAI-Bench-1600", "genai_skills.json", '{"counting": [0]}')
    written(place / "VPEval/data/open_ended", "all_evaluation_programs.json", json.dumps({"coco_1": "objectEval(image, 'dog')"}))
    folder_of(images(3), place / "coco/val2014")
    return file, [row["prompt"] for row in rows for _ in range(2)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "coco" else n for n in RECIPES])
def test_every_recipe_runs_with_tiny_weights(place, name):
    file, prompts = published(place, name)
    if name == "t2i_compbench_3d_spatial":  # both prompts must name a place in depth
        written(place, "p.jsonl", (place / "p.jsonl").read_text().replace("next to", "behind"))
        prompts = [p.replace("next to", "behind") for p in prompts]
    elif "spatial" in name or "complex" in name:
        written(place, "p.jsonl", (place / "p.jsonl").read_text().replace("in front of", "near"))
        prompts = [p.replace("in front of", "near") for p in prompts]
    predicted(place / "a", torch.rand(4, 3, 48, 48), prompts)
    evaluate("a", "--config", f"evaluate/{name}", "--prompts", file, "--per_prompt", "2", "--smoke", "true", "--split", "train")
    found = json.loads((place / "a/evaluate/results.json").read_text())
    assert found["images"] == 4 and found["prompts"] == 2 and found["sides"][0]["metrics"]
    header = [line for line in (ROOT / f"configs/evaluate/{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any("How to run: python -m lit_align evaluate" in line and f"evaluate/{name}" in line for line in header)
    assert any("Expected:" in line or "Published:" in line for line in header)
    if name == "geneval":
        lines = [json.loads(line) for line in (place / "a/evaluate/geneval.jsonl").read_text().splitlines()]
        assert [line["filename"] for line in lines] == [f"{i:05d}.png" for i in range(4)]
