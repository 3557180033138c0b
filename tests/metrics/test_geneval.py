"""GenEval's benchmark: figures, the published output, the columns of the published file."""

import json

import pytest
import torch

from lit_align.metrics.geneval import GenEvalAccuracy
from lit_align.rewards.geneval import Detection, GenEval, confident

ROWS = [
    ("one dog", [{"class": "dog", "count": 1}], "single_object", None),
    ("three cats", [{"class": "cat", "count": 3}], "counting", [{"class": "cat", "count": 4}]),
    ("three cats", [{"class": "cat", "count": 3}], "counting", [{"class": "cat", "count": 4}]),
    ("a dog left of a cat", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}], "position", None),
]
BOX = lambda x, score=0.95: Detection((x, 10.0, x + 10, 20.0), score)
SEEN = [
    [("dog", BOX(0, 0.31))],
    [("cat", BOX(x, s)) for x, s in ((0, 0.95), (20, 0.92), (40, 0.91), (60, 0.89))],  # the fourth is below 0.9
    [("cat", BOX(x)) for x in (0, 20, 40, 60)],  # four are too many
    [("dog", BOX(50)), ("cat", BOX(0))],  # the wrong side
]


class Scripted(GenEval):
    def __init__(self, seen):
        torch.nn.Module.__init__(self)
        self.rule, self.name, self.seen = "correct", "geneval", list(seen)

    def objects(self, image, tag):
        return confident(self.seen.pop(0), tag)


def test_thresholds_counts_places_and_the_published_lines():
    metric = GenEvalAccuracy(Scripted(SEEN))
    prompts, include, tag, exclude = ([row[i] for row in ROWS] for i in range(4))
    metric.update(torch.rand(4, 3, 8, 8), prompts, include=include, tag=tag, exclude=exclude)
    found = {k: v.item() for k, v in metric.compute().items()}
    assert found == pytest.approx({"geneval": (1 + 0.5 + 0) / 3, "geneval/single_object": 1, "geneval/counting": 0.5, "geneval/position": 0, "geneval/images": 0.5, "geneval/prompts": 2 / 3})
    records = [{"filename": f"{i:05d}.png", "prompt": p} | r for i, (p, r) in enumerate(zip(prompts, metric.records()))]
    lines = [json.loads(line) for line in metric.files(records)["geneval.jsonl"].splitlines()]
    assert list(lines[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert [line["correct"] for line in lines] == [True, True, False, False]
    assert lines[2]["reason"] == "expected cat<4, found 4" and lines[3]["reason"] == "expected dog left of target"
    assert json.loads(lines[1]["metadata"]) == {"tag": "counting", "include": ROWS[1][1], "exclude": ROWS[1][3], "prompt": "three cats"}
    assert json.loads(lines[0]["details"]) == {"dog": [[0.0, 10.0, 10.0, 20.0, 0.31]]}
    assert metric.columns == {"include": True, "tag": True, "exclude": False}
