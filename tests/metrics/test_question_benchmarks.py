"""DPG-Bench, GenAI-Bench, VPEval and LLMScore: files as published, answers from a script."""

import json

import pytest
import torch
from metric_parts import CSV, GENAI, SKILLS, written

from lit_align.metrics.dpg import DPGBench, gated
from lit_align.metrics.genai_bench import GenAIBench
from lit_align.metrics.llm_score import LLMScore, two_numbers
from lit_align.metrics.vpeval import VPEval, steps_of
from lit_align.rewards.answers import Unreadable
from lit_align.rewards.reward import Reward

IMAGE = torch.rand(1, 3, 8, 8)


class Asked(Reward):
    """P(yes) by question."""

    name, differentiable = "asked", False

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, images, prompts):
        return torch.tensor([float(self.answers[p]) for p in prompts])


def test_a_question_counts_as_no_if_one_that_it_depends_on_does():
    """2 needs 1; 3 needs 2; 4 needs nothing: 1 is no, so 2 and with it 3 are."""
    parents = {1: [0], 2: [1], 3: [2], 4: [0]}
    assert gated({1: False, 2: True, 3: True, 4: True}, parents) == {1: False, 2: False, 3: False, 4: True}
    assert gated({1: True, 2: False, 3: True, 4: False}, parents) == {1: True, 2: False, 3: False, 4: False}


def test_dpg_counts_categories_without_the_gate(tmp_path):
    file = written(tmp_path, "dpg_bench.csv", CSV)
    metric = DPGBench(file, Asked({"is it 1?": 0.4, "is it 2?": 0.9, "is it 3?": 0.8}))
    metric.update(IMAGE, ["text of p1"], file_name=["p1"])
    metric.asker.answers = {"is it 1?": 0.9, "is it 2?": 0.9, "is it 3?": 0.2}
    metric.update(IMAGE, ["text of p2"], file_name=["p2"])
    found = {k: v.item() for k, v in metric.compute().items()}
    assert found == pytest.approx({"dpg": (0 + 200 / 3) / 2, "dpg/entity": 50, "dpg/attribute": 100, "dpg/relation": 50})
    assert metric.records()[0]["answers"] == {"is it 1?": "no", "is it 2?": "yes", "is it 3?": "yes"}
    with pytest.raises(ValueError, match="no questions for p9"):
        metric.update(IMAGE, [""], file_name=["p9"])


def test_genai_bench_by_skill(tmp_path):
    metric = GenAIBench(written(tmp_path, "genai_image.json", GENAI), written(tmp_path, "genai_skills.json", SKILLS), Asked({"p0": 0.1, "p1": 0.2, "p2": 0.6, "p3": 0.9}))
    for i in range(4):
        metric.update(IMAGE, [f"p{i}"])
    found = {k: v.item() for k, v in metric.compute().items()}
    assert found == pytest.approx({"genai_bench": 0.45, "genai_bench/counting": 0.35, "genai_bench/advanced": 0.35, "genai_bench/basic": 0.2})
    with pytest.raises(ValueError, match="'p7' is no prompt of GenAI-Bench"):
        metric.update(IMAGE, ["p7"])


PROGRAM = "objectEval(image, 'dog');countEval(objDet(image, 'dog'), '>1');vqa(iamge, 'what color is the man\\\\'s hat?', 'red,blue', 'red');spatialEval(image, 'dog,cat,left');scaleEval(image, 'dog,cat,bigger');textEval(ocr(image), 'STOP');vqa(image, 'no choices');broken(;__import__('os').system('touch bad')"


def test_programs_are_read_and_never_run():
    steps, unread = steps_of(PROGRAM)
    assert steps == [("objectEval", ["dog"]), ("countEval", ["dog", ">1"]), ("spatialEval", ["dog,cat,left"]), ("scaleEval", ["dog,cat,bigger"]), ("textEval", ["STOP"])]
    assert unread == 4  # an apostrophe without its backslash cannot be read either


def test_vpeval_asks_for_each_step(tmp_path):
    metric, asked = VPEval(written(tmp_path, "p.json", json.dumps({"coco_1": PROGRAM})), "tiny", "float32"), []

    def yes(images, texts):
        asked.extend(texts)
        return torch.tensor([0.1 if "cat" in t and "bigger" in t else 0.9 for t in texts])

    metric.vlm.yes = yes
    metric.vlm.answers = lambda images, texts, n: asked.extend(texts) or ["3."]
    metric.update(IMAGE, ["a dog"], id=["coco_1"])
    assert metric.compute()["vpeval"].item() == pytest.approx(4 / 5)
    (record,) = metric.records()
    assert record["unread"] == 4 and record["steps"]["scaleEval(dog,cat,bigger)"] is False
    assert asked == [
        "Is there a dog in the image? Answer with yes or no.",
        "How many of these are in the image: dog? Answer with a number.",
        "Is there a dog in the image? Answer with yes or no.",
        "Is there a cat in the image? Answer with yes or no.",
        "Is the dog to the left of the cat? Answer with yes or no.",
        "Is there a dog in the image? Answer with yes or no.",
        "Is there a cat in the image? Answer with yes or no.",
        "Is the dog bigger than the cat? Answer with yes or no.",
        'Is the text "STOP" written in the image? Answer with yes or no.',
    ]
    with pytest.raises(ValueError, match="no program coco_2"):
        metric.update(IMAGE, [""], id=["coco_2"])


@pytest.mark.parametrize("said,wanted,right", [("2", "==2", True), ("two dogs", "==2", False), ("3", ">2", True), ("3", "<=two", False), ("2", "2", True), ("4", "!=4", False)])
def test_counts(said, wanted, right, tmp_path):
    metric = VPEval(written(tmp_path, "p.json", "{}"), "tiny", "float32")
    metric.vlm.answers = lambda *_: [said]
    assert metric.countEval(IMAGE[0], "dog", wanted) is right


def test_llm_score_rates_a_description_without_the_image(tmp_path):
    file = written(tmp_path, "instruction.py", 'class A:\n    x = f"""Count composition errors."""\n')
    metric = LLMScore(file, "tiny", "float32")
    metric.instruction, asked = "RATE", []
    metric.vlm.answers = lambda images, texts, n: ["a red dog"] * len(texts)
    metric.rated = lambda texts: asked.extend(texts) or ["85\n\n1\nfine\nnearly"]
    metric.update(IMAGE, ["a dog"])
    assert asked == ["Text Prompt: a dog\nImage Description: a red dog\nRATE"]
    assert {k: v.item() for k, v in metric.compute().items()} == {"llm_score": 85, "llm_score/errors": 1}
    assert metric.records()[0]["rationale"] == "fine nearly"
    for wrong in ("good\n1", "85", "101\n0", "50\n10", "X1: 85\n2"):
        with pytest.raises(Unreadable):
            two_numbers(wrong)
