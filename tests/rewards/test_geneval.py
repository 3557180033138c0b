"""GenEval's rules on detections written by hand, and the models that make detections."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parts import T
from torch import nn

from lit_align.cli import main
from lit_align.policies import tiny
from lit_align.rewards import geneval
from lit_align.rewards.geneval import (
    CLASSES,
    COLORS,
    Detection,
    GenEval,
    InstanceDetector,
    box_of,
    confident,
    graded,
    reasons,
    relations,
)
from lit_align.rewards.reward import components


def at(x, y, w=10, h=10, score=0.95, color=None):
    """A detection with its centre at (x, y). Its mask is its colour's name, for `named`."""
    return Detection((x - w / 2, y - h / 2, x + w / 2, y + h / 2), score, color)


def named(name, found):
    return [detection.mask for detection in found]


def correct(objects, include, exclude=None):
    return not reasons(objects, include, exclude, named)


DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}


def test_the_classes_are_cocos_in_order():
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert [CLASSES.index(c) for c in ("person", "bench", "dog", "hot dog", "computer mouse", "toothbrush")] == [0, 13, 16, 52, 64, 79]


# What is kept


def test_confidence_decides_and_counting_asks_for_more():
    found = [("dog", at(0, 0, score=s)) for s in (0.2, 0.95, 0.3, 0.31, 0.9)] + [("cat", at(0, 0, score=0.1))]
    assert [d.score for d in confident(found, "colors")["dog"]] == [0.95, 0.9, 0.31]  # above, not at, 0.3
    assert [d.score for d in confident(found, "counting")["dog"]] == [0.95]
    assert set(confident(found, "colors")) == {"dog"}


def test_sixteen_of_a_class_at_most():
    found = [("dog", at(i, 0, score=0.4 + i / 100)) for i in range(20)] + [("cat", at(0, 0))]
    kept = confident(found, "position")
    assert [d.score for d in kept["dog"]] == [pytest.approx(0.4 + i / 100) for i in reversed(range(4, 20))] and len(kept["cat"]) == 1


# Places


def published(a, b, threshold=0.1):
    """The relation as the paper words it, with arrays: centres' offset, shortened by both objects' sizes, in unit length."""
    boxes = np.array([a.box, b.box]).reshape(2, 2, 2)
    offset = boxes[0].mean(0) - boxes[1].mean(0)
    sizes = (boxes[:, 1] - boxes[:, 0]).sum(0)
    revised = np.sign(offset) * np.maximum(np.abs(offset) - threshold * sizes, 0)
    if (np.abs(revised) < 1e-3).all():
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    return {name for name, holds in {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}.items() if holds}


@pytest.mark.parametrize("a,want", [
    ((-50, 0), {"left of"}),
    ((50, 0), {"right of"}),
    ((0, -50), {"above"}),
    ((0, 50), {"below"}),
    ((50, 50), {"right of", "below"}),
    ((-50, -50), {"left of", "above"}),
    ((50, 20), {"right of"}),
    ((0, 0), set()),  # the same place
    ((2, 0), set()),  # 2 = 0.1 x (10 + 10): exactly at the threshold
    ((2, -2), set()),
    ((3, 0), set()),  # shortened to 1, a third of the offset
    ((4, 0), set()),  # shortened to half of the offset, which is not more
    ((4.1, 0), {"right of"}),
])  # fmt: skip
def test_where_a_lies_from_b(a, want):
    assert relations(at(*a), at(0, 0)) == want == published(at(*a), at(0, 0))


def test_relations_are_those_of_the_paper_for_any_boxes():
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b = (at(*rng.uniform(0, 60, 2), *rng.uniform(1, 60, 2)) for _ in range(2))
        assert relations(a, b) == published(a, b)


# The rules, for each tag


def test_single_object():
    assert correct({"dog": [at(0, 0)]}, [DOG])
    assert correct({"dog": [at(0, 0), at(30, 0)], "cat": [at(0, 0)]}, [DOG])  # more do no harm
    assert reasons({"cat": [at(0, 0)]}, [DOG], None, named) == ["expected dog>=1, found 0"]
    assert graded({"dog": [at(0, 0)]}, [DOG], named) == (1.0, True)
    assert graded({"dog": [at(0, 0), at(0, 0)]}, [DOG], named) == (0.0, False)  # a duplicate is one too many
    assert graded({"dog": [at(0, 0)] * 3}, [DOG], named) == (-1.0, False)  # negative, as released
    assert graded({}, [DOG], named) == (0.0, False)


def test_two_object():
    both = {"dog": [at(0, 0)], "cat": [at(50, 0)]}
    assert correct(both, [DOG, CAT]) and graded(both, [DOG, CAT], named) == (1.0, True)
    assert not correct({"dog": [at(0, 0)]}, [DOG, CAT]) and graded({"dog": [at(0, 0)]}, [DOG, CAT], named) == (0.5, False)


def test_counting():
    three, more = {"class": "dog", "count": 3}, [{"class": "dog", "count": 4}]
    dogs = lambda n: {"dog": [at(30 * i, 0) for i in range(n)]} if n else {}
    assert [correct(dogs(n), [three], more) for n in range(6)] == [False, False, False, True, False, False]
    assert reasons(dogs(5), [three], more, named) == ["expected dog<4, found 5"]
    assert [graded(dogs(n), [three], named)[0] for n in (0, 2, 3, 4, 7)] == pytest.approx([0, 2 / 3, 1, 2 / 3, -1 / 3])
    assert [graded(dogs(n), [three], named)[1] for n in (2, 3, 4)] == [False, True, False]


def test_colors():
    red = DOG | {"color": "red"}
    dogs = lambda *colors: {"dog": [at(30 * i, 0, color=c) for i, c in enumerate(colors)]}
    assert correct(dogs("red"), [red]) and graded(dogs("red"), [red], named) == (1.0, True)
    assert reasons(dogs("blue"), [red], None, named) == ["expected red dog>=1, found 0"]
    assert graded(dogs("blue"), [red], named) == (0.5, False)
    assert correct(dogs("red", "blue"), [red]) and not correct(dogs("blue", "red"), [red])  # the most confident one counts
    assert graded(dogs("red", "blue"), [red], named) == (0.0, False)  # 0 for the number, 0 for the colour
    two = {"class": "dog", "count": 2, "color": "red"}
    assert graded(dogs("red", "blue"), [two], named) == (pytest.approx(0.75), False) and not correct(dogs("red", "blue"), [two])


def test_color_attr():
    clauses = [DOG | {"color": "red"}, CAT | {"color": "blue"}]
    seen = lambda dog, cat: {"dog": [at(0, 0, color=dog)], "cat": [at(50, 0, color=cat)]}
    assert correct(seen("red", "blue"), clauses) and graded(seen("red", "blue"), clauses, named) == (1.0, True)
    assert not correct(seen("blue", "red"), clauses) and graded(seen("blue", "red"), clauses, named) == (0.5, False)
    assert graded({"dog": [at(0, 0, color="red")]}, clauses, named) == (0.5, False)  # 1, 1, 0, 0


def test_position():
    clauses = [DOG, CAT | {"position": ["right of", 0]}]
    seen = lambda x, *more: {"dog": [at(0, 0)], "cat": [at(x, 0), *more]}
    assert correct(seen(50), clauses) and graded(seen(50), clauses, named) == (1.0, True)
    assert reasons(seen(-50), clauses, None, named) == ["expected cat right of target"]
    assert graded(seen(-50), clauses, named) == (pytest.approx(3 / 4), False)  # 1, 1, 0 and the further 1
    assert correct(seen(50, at(-50, 0)), clauses)  # the most confident one counts
    assert graded(seen(50, at(-50, 0)), clauses, named) == (pytest.approx(1 / 3), False)  # 1, 0, 0
    no_dog = {"cat": [at(50, 0)]}
    assert reasons(no_dog, clauses, None, named) == ["expected dog>=1, found 0", "no target for cat to be right of"]
    assert graded(no_dog, clauses, named) == (pytest.approx(1 / 3), False)  # 0, 1, 0


def test_every_object_must_lie_so_from_every_target():
    clauses = [{"class": "dog", "count": 2}, CAT | {"position": ["right of", 0]}]
    seen = lambda x: {"dog": [at(0, 0), at(30, 0)], "cat": [at(x, 0)]}
    assert correct(seen(60), clauses) and not correct(seen(15), clauses)
    assert graded(seen(15), clauses, named) == (pytest.approx(3 / 4), False)


def test_missing_fields_are_absent_or_none():
    clauses = [{"class": "dog", "count": 1, "color": None, "position": None}]
    assert correct({"dog": [at(0, 0)]}, clauses, []) and graded({"dog": [at(0, 0)]}, clauses, named) == (1.0, True)


# The models


def folder(path):
    tiny.Mask2Former().save_pretrained(path)
    return str(path)


def test_a_published_detector_loads_and_another_is_refused(tmp_path):
    detector = InstanceDetector(folder(tmp_path / "coco"))
    assert detector.sides == (800, 1333)
    want = tiny.Mask2Former().state_dict()
    assert all(torch.equal(v, want[k]) for k, v in detector.model.state_dict().items())
    config = tiny.Mask2Former().config
    config.id2label = {i: str(i) for i in range(133)}
    type(detector.model)(config).save_pretrained(tmp_path / "panoptic")
    with pytest.raises(ValueError, match="has 133 classes; GenEval needs a detector of COCO's 80 objects"):
        InstanceDetector(str(tmp_path / "panoptic"))


class Says(nn.Module):
    """A detector's network that sees two objects in any image: 10 x 10 cells of logits."""

    def __init__(self, *objects, cells=10):
        super().__init__()
        self.config, self.given = SimpleNamespace(num_labels=80), None
        logits, masks = torch.full((len(objects) + 1, 81), -20.0), torch.full((len(objects) + 1, cells, cells), -20.0)
        logits[:, 80] = 0.0
        for i, (name, logit, (left, top, right, bottom), inside) in enumerate(objects):
            logits[i, CLASSES.index(name)] = logit
            masks[i, top:bottom, left:right] = inside
        self.out = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])

    def forward(self, pixel_values):
        self.given = pixel_values
        return self.out


def test_scores_boxes_and_masks_are_those_of_the_networks_output():
    detector = InstanceDetector("tiny")
    detector.sides = (320, 533)
    detector.model = Says(("dog", 3.0, (1, 2, 4, 6), 20.0), ("cat", 0.0, (5, 5, 10, 10), 1.0))
    with torch.no_grad():
        found = dict(detector(torch.rand(3, 10, 10)))
    assert detector.model.given.shape == (1, 3, 320, 320)
    assert found["dog"].box == (1, 2, 4, 6) and found["dog"].mask.sum() == 12
    sure = lambda logit: 1 / (1 + np.exp(-logit))
    assert found["dog"].score == pytest.approx(sure(3.0), rel=1e-3)  # softmax over the class and none
    assert found["cat"].score == pytest.approx(0.5 * sure(1.0), rel=0.02) and found["cat"].box == (5, 5, 10, 10)


def test_the_image_is_resized_padded_and_normalised():
    detector = InstanceDetector("tiny")
    detector.sides, detector.model = (80, 133), Says(("dog", 3.0, (0, 0, 10, 10), 20.0))
    image = T([1.0, 0.0, 0.5]).view(3, 1, 1).expand(3, 20, 30)
    found = detector(image)
    x = detector.model.given
    assert x.shape == (1, 3, 96, 128)  # 80 x 120, padded to multiples of 32
    assert found[0][1].mask.shape == (20, 30) and found[0][1].box == (0, 0, 30, 20)
    want = [(255 - 123.675) / 58.395, -116.28 / 57.12, (128 - 103.53) / 57.375]
    assert x[0, :, 40, 60].tolist() == pytest.approx(want, rel=1e-4) and not x[..., 80:, :].any() and not x[..., 120:].any()
    detector(image.expand(3, 20, 30)[:, :10])  # 10 x 30: the longer side decides
    assert detector.model.given.shape == (1, 3, 64, 160)  # 44 x 133


def test_the_detectors_own_network_gives_what_transformers_own_steps_give():
    """transformers' post-processing, whose masks are coarser: the same classes and scores."""
    from transformers import Mask2FormerImageProcessorPil

    detector = InstanceDetector("tiny")
    detector.sides = (384, 384)
    image = torch.rand(3, 384, 384, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = detector(image)
        x = ((image * 255).round() / 255 - T(geneval.MEAN).view(3, 1, 1) / 255) / (T(geneval.STD).view(3, 1, 1) / 255)
        out = detector.model(pixel_values=x[None])
    (theirs,) = Mask2FormerImageProcessorPil().post_process_instance_segmentation(out, threshold=0.0, target_sizes=[(384, 384)])
    mine = sorted((round(d.score, 5), CLASSES.index(name)) for name, d in found)
    want = sorted((round(s["score"], 5), s["label_id"]) for s in theirs["segments_info"])
    assert len(mine) > 5 and mine == want


def test_box_of_a_mask():
    mask = torch.zeros(8, 9, dtype=torch.bool)
    mask[2, 3] = mask[5, 7] = True
    assert box_of(mask) == (3, 2, 8, 6)


@pytest.fixture(scope="module")
def reward():
    return GenEval(pretrained="tiny")


def test_an_object_is_shown_to_clip_alone_on_grey(reward, monkeypatch):
    seen = []
    monkeypatch.setattr(geneval, "pixels", lambda model, x: seen.append(x) or torch.zeros(1, 3, 16, 16))
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:10, 6:16] = True
    mask[4, 6] = False
    image = torch.rand(3, 20, 30)
    reward.colors(image, "dog", [Detection((6, 4, 16, 10), 0.9, mask)])
    assert seen[0].shape == (1, 3, 6, 10) and torch.equal(seen[0][0, :, 1:], image[:, 5:10, 6:16])
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([0.6] * 3)


def test_a_colour_is_the_most_likely_by_the_mean_of_three_sentences(reward):
    """From transformers' own model, sentence by sentence."""
    images, mask = torch.rand(3, 3, 16, 16), torch.ones(16, 16, dtype=torch.bool)
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    texts = []
    for color in COLORS:
        sentences = [f"a photo of a {color} hot dog", f"a photo of a {color}-colored hot dog", f"a photo of a {color} object"]
        tokens = reward.tokenizer(sentences, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            texts.append(unit(unit(reward.model.get_text_features(**tokens).pooler_output).mean(0)))
    for image in images:
        with torch.no_grad():
            feature = reward.model.get_image_features(pixel_values=geneval.pixels(reward.model, image[None])).pooler_output[0]
        want = COLORS[int(torch.stack([feature @ text for text in texts]).argmax())]
        with torch.no_grad():
            assert reward.colors(image, "hot dog", [Detection((0, 0, 16, 16), 0.9, mask)]) == [want]


ROWS = {"prompt": ["two dogs", "a dog"], "columns": {"include": [[{"class": "dog", "count": 2}], [{"class": "dog", "count": 1}]], "tag": ["counting", "single_object"], "exclude": [[{"class": "dog", "count": 3}], None]}}


@pytest.mark.parametrize("rule,want", [("partial", [1.0, 0.0]), ("strict", [1.0, 0.0]), ("correct", [1.0, 1.0])])
def test_a_row_is_judged_by_its_columns(rule, want, reward, monkeypatch):
    two = Says(("dog", 9.0, (0, 0, 4, 4), 20.0), ("dog", 9.0, (5, 5, 9, 9), 20.0))
    monkeypatch.setitem(reward.detector._modules, "model", two)
    monkeypatch.setattr(reward, "rule", rule)
    assert reward.columns == {"include": True, "tag": True, "exclude": False}
    assert components(reward, torch.rand(2, 3, 10, 10), ROWS).tolist() == want
    with pytest.raises(ValueError, match="the tag 'colour' is none of GenEval's: single_object"):
        components(reward, torch.rand(2, 3, 10, 10), ROWS | {"columns": ROWS["columns"] | {"tag": ["counting", "colour"]}})


def test_uncertain_objects_do_not_count(reward, monkeypatch):
    unsure = Says(("dog", 1.0, (0, 0, 4, 4), 20.0), ("dog", 1.0, (5, 5, 9, 9), 20.0))  # 0.73: not for counting
    monkeypatch.setitem(reward.detector._modules, "model", unsure)
    assert components(reward, torch.rand(2, 3, 10, 10), ROWS).tolist() == [0.0, 0.0]  # none, and two


METADATA = [
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"},
    {"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}], "prompt": "a photo of a tie right of a dog"},
    {"tag": "color_attr", "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "bus", "count": 1, "color": "blue"}], "prompt": "a photo of a red dog and a blue bus"},
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
]


@pytest.mark.slow
def test_genevals_own_file_is_trained_on(tmp_path, monkeypatch):
    """The command of the recipe, on metadata in the published schema."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METADATA))
    small = "--model.policy.pretrained tiny --model.policy.dtype float32 --model.policy.resolution 32 --data.resolution 32 --model.reward.pretrained tiny"
    small += " --trainer.accelerator cpu --trainer.devices 1 --trainer.precision 32-true --trainer.max_steps 2 --model.samples_per_prompt 2 --model.rollout.steps 3"
    files = "--data.path train_metadata.jsonl --data.val_prompts null --data.test_prompts null --data.batch_size 4 --model.rewards []"
    quiet = "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.val_check_interval null"
    cli = main(["fit", "--config", "flow_grpo_geneval_sd35", *f"{small} {files} {quiet}".split()])
    assert cli.trainer.global_step == 2 and "train/reward" in cli.trainer.callback_metrics
