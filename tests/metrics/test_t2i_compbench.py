"""T2I-CompBench's rules on boxes, phrases and depth, against the released ones written out."""

import sys
from types import SimpleNamespace

import pytest
import torch

from lit_align.metrics.t2i_compbench import (
    Depth,
    T2ICompBench,
    counted,
    noun_chunks,
    nouns,
    numbered,
    overlap,
    pair_score,
    placed,
    stacked,
)
from lit_align.rewards.geneval import Detection
from lit_align.rewards.reward import Reward

IMAGE = torch.rand(3, 512, 512)
BOX = (200.0, 200.0, 300.0, 300.0)
moved = lambda dx, dy: (BOX[0] + dx, BOX[1] + dy, BOX[2] + dx, BOX[3] + dy)


class Boxes:
    def __init__(self, **found):
        self.found, self.asked = {k: [Detection(box, score) for box, score in v] for k, v in found.items()}, []

    def __call__(self, image, names):
        self.asked.append(names)
        return {name: self.found.get(name, []) for name in names}


class Product(Reward):
    name, differentiable = "product", False

    def forward(self, images, prompts):
        return torch.tensor([{"a red dog?": 0.5, "a cat?": 0.4}[p] for p in prompts])


class Thirty(Reward):
    name, differentiable = "thirty", False

    def forward(self, images, prompts):
        return torch.full((len(images),), 30.0)


def bench(category, detector=None):
    """Without weights of its own."""
    metric = T2ICompBench("non_spatial", clip=Thirty())
    metric.category, metric.detector, metric.asker = category, detector, Product()
    return metric


@pytest.mark.parametrize("relation,dx,dy,expected", [
    ("next to", 149, 400, 1), ("next to", 400, 149, 1), ("near", 300, 200, 150 / 300), ("on side of", 151, 151, 150 / 151),
    ("on the left of", 120, 50, 1), ("on the left of", -120, 50, 0), ("on the left of", 120, 130, 0), ("on the right of", -120, 50, 1),
    ("on the top of", 10, 110, 1), ("on the bottom of", 10, -110, 1), ("on the bottom of", 10, 110, 0),
])  # fmt: skip
def test_places(relation, dx, dy, expected):
    assert placed(relation, BOX, moved(dx, dy)) == pytest.approx(expected)


@pytest.mark.parametrize("dx,iou", [(95, 5 / 195), (200 / 3, 0.2), (100 / 3, 0.5)])
def test_overlap_lowers_a_place(dx, iou):
    assert overlap(BOX, moved(dx, 0))[0] == pytest.approx(iou)
    assert placed("on the left of", BOX, moved(dx, 0)) == pytest.approx(1 if iou < 0.1 else 0.1 / iou)


def test_spatial_has_a_floor_of_a_half():
    near = bench("spatial", Boxes(dog=[(BOX, 0.8)], person=[(moved(100, 0), 0.6)]))
    assert near.spatial(IMAGE, "a dog on the left of a man", ["dog", "man"]) == pytest.approx(0.25 * 1.4 + 0.5)
    assert near.spatial(IMAGE, "a dog on the right of a man", ["dog", "man"]) == 0  # 0.35 is below it
    assert near.detector.asked[0] == ["dog", "person"]
    assert bench("spatial", Boxes(dog=[(BOX, 0.9)])).spatial(IMAGE, "a dog near a cat", ["dog", "cat"]) == 0
    assert pair_score({"dog": [Detection(BOX, 0.9)], "cat": []}, "dog", "cat", None) == pytest.approx(0.225)
    with pytest.raises(ValueError, match="names no place"):
        near.spatial(IMAGE, "a dog and a man", ["dog", "man"])


def test_depth_decides_only_where_boxes_overlap():
    depth = torch.zeros(512, 512)
    depth[200:310, 200:301] = 1  # rows, then columns: the first box is nearer
    half = moved(0, 100 / 3)
    assert stacked("in front of", BOX, half, depth) == pytest.approx(1)
    assert stacked("behind", BOX, half, depth) == 0 and stacked("behind", half, BOX, depth) == pytest.approx(1)
    assert stacked("in front of", BOX, moved(0, 80), depth) == pytest.approx((2 / 18) / 0.5)
    assert stacked("in front of", BOX, moved(0, 150), depth) == 0


def test_numbers():
    boxes = Boxes(dog=[(BOX, 0.9), (moved(2, 0), 0.8), (moved(200, 0), 0.7)], boat=[(BOX, 0.5)])
    assert counted(boxes.found["dog"]) == 2
    metric = bench("numeracy", boxes)
    assert metric.numeracy(IMAGE, ["two dog"]) == 1 and metric.numeracy(IMAGE, ["three dog"]) == 0.5
    assert metric.numeracy(IMAGE, ["two dog", "two ship", "a cat"]) == pytest.approx((1 + 0.5 + 0) / 3)


def test_attributes_multiply_and_complex_takes_the_mean():
    metric = bench("color")
    assert metric.attributes(IMAGE, ["a red dog", "a cat"]) == pytest.approx(0.2) and metric.attributes(IMAGE, []) == 1
    metric = bench("complex", Boxes(dog=[(BOX, 1.0)], cat=[(moved(100, 0), 1.0)]))
    score = lambda kind: metric.score(IMAGE, "a red dog next to a cat", ["a red dog", "a cat"], ["dog", "cat"], kind)
    assert score("spatial") == pytest.approx((0.2 + 1) / 2) and score("action") == pytest.approx((0.2 + 0.3) / 2)
    assert score("both") == pytest.approx((0.2 + 1 + 0.3) / 3)
    with pytest.raises(ValueError, match="need a column `kind`"):
        score(None)


def test_prompts_are_read_by_spacy_or_said_to_be_unread(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match="pip install spacy"):
        nouns("a dog")

    class Doc(list):
        noun_chunks = ["a red dog", "the left", "two tennis rackets"]

    token = lambda text, pos="X", lemma=None: SimpleNamespace(text=text, pos_=pos, lemma_=lemma or text)
    doc = Doc([token("a"), token("dog", "NOUN"), token("and"), token("two"), token("tennis", "NOUN"), token("rackets", "NOUN", "racket")])
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: lambda prompt: doc))
    assert noun_chunks("") == ["a red dog", "two tennis rackets"] and nouns("") == ["dog", "tennis", "rackets"]
    assert numbered("") == ["a dog", "two tennis racket"]


@pytest.mark.parametrize("category,columns", [("3d_spatial", {"objects": [["dog", "cat"]]}), ("complex", {"phrases": [["a dog"]], "objects": [["dog", "cat"]], "kind": ["both"]})])
def test_tiny_models_run(category, columns):
    from lit_align.metrics.detector import OpenDetector
    from lit_align.rewards.blip_vqa import BLIPVQA
    from lit_align.rewards.clip_score import CLIPScore

    metric = T2ICompBench(category, BLIPVQA("tiny"), OpenDetector("tiny", 0.0), CLIPScore("tiny"), Depth("tiny"))
    prompt = "a dog in front of a cat" if category == "3d_spatial" else "a dog next to a cat"
    metric.update(torch.rand(1, 3, 48, 64), [prompt], **columns)
    assert metric.compute()[f"t2i_compbench_{category}"].isfinite()
