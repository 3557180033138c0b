"""VisionReward's checklist."""

import json

import pytest
import torch
from pictures import picture

from lit_align.rewards.vision_reward import MASKS, VisionReward


class Constant(torch.nn.Module):
    """An alignment reward."""

    name, columns, names = "constant", {}, ()

    def components(self, images, prompts):
        return torch.tensor([float(len(p)) for p in prompts])


QUESTIONS = ["Is there a body?", "Is it clear?", "Is the body right?", "Is there a face?", "Is the face right?"]


@pytest.fixture
def checklist(tmp_path):
    """The published files: a question to a line, and `coef` and `intercept`."""
    (tmp_path / "qa.txt").write_text("\n".join([f"{QUESTIONS[0]} ", *QUESTIONS[1:]]))
    (tmp_path / "weight.json").write_text(json.dumps({"coef": [2.0, 0.5, -1.0, 3.0], "intercept": [0.25]}))
    return str(tmp_path / "qa.txt"), str(tmp_path / "weight.json")


def build(checklist, monkeypatch, yes, **kwargs):
    """A VisionReward whose judge says yes to the questions that stand in `yes`."""
    from lit_align.rewards import vision_reward

    class Says(torch.nn.Module):
        def __init__(self, *args):
            super().__init__()

        def yes(self, images, texts):
            assert len(images) == len(texts)
            return torch.tensor([0.9 if text in yes else 0.1 for text in texts])

    monkeypatch.setattr(vision_reward, "VLM", Says)
    return VisionReward("a-model", *checklist, masks={0: [2], 3: [4]}, **kwargs)


@pytest.mark.parametrize("yes,answers", [
    (QUESTIONS, [1, 1, 1]), ([], [-1, 0, 0]), (QUESTIONS[1:], [1, 0, 1]), (QUESTIONS[:2], [1, -1, 0]), ([QUESTIONS[2], QUESTIONS[4]], [-1, 0, 0]),
])  # fmt: skip
def test_a_checklist_is_a_weighted_sum_with_masks(checklist, monkeypatch, yes, answers):
    reward = build(checklist, monkeypatch, yes, alignment=Constant())
    want = [2.0 * len(p) + 0.5 * answers[0] - 1.0 * answers[1] + 3.0 * answers[2] + 0.25 for p in ("a", "bcd")]
    assert reward(picture(2, 8, 8), ["a", "bcd"]).tolist() == want


def test_weights_for_another_number_of_answers_are_refused(checklist, monkeypatch):
    with pytest.raises(ValueError, match="has 4 weights for 3 answers; the first of the released ones is of the alignment: set alignment to VQAScore"):
        build(checklist, monkeypatch, [])


def test_the_released_masks_fit_the_released_list():
    """30 questions, of which 3 ask whether something is there; 28 weights with the alignment's."""
    about = [i for others in MASKS.values() for i in others]
    assert sorted(MASKS) == [0, 1, 2] and max(about) == 29 and len(set(about)) == len(about) and 30 - len(MASKS) + 1 == 28


@torch.no_grad()
def test_answers_are_yes_where_the_model_says_yes():
    reward, images = VisionReward("tiny", dtype="float32", chunk=4), picture(3, 32, 32)
    ids = [reward.vlm.tokenizer.convert_tokens_to_ids(w) for w in ("Yes", "yes", "No", "no")]
    total = []
    for image in images:
        a = []
        for question in reward.questions:
            p = reward.vlm.model(**reward.vlm.inputs(image[None, None], [question])).logits[0, -1].softmax(0)[ids]
            a.append(1 if p[:2].sum() > p[2:].sum() else -1)
        total.append(a[1] + a[2] * (a[0] > 0))
    assert reward(images, ["a"] * 3).tolist() == total
