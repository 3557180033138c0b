"""Any chat model as a judge, and VisionReward's checklist."""

import json

import pytest
import torch
from pictures import check_gradient, picture

from lit_align.rewards import tiny
from lit_align.rewards.vision_reward import MASKS, VisionReward
from lit_align.rewards.vlm_judge import VLMJudge, VLMPairs


def logits(vlm, images, question):
    return vlm.model(**vlm.inputs(images[None], [question])).logits[0, -1]


@torch.no_grad()
def test_yes_is_asked_about_the_prompt():
    judge, images = VLMJudge("tiny", dtype="float32"), picture(2, 32, 32)
    ids = [judge.vlm.tokenizer.convert_tokens_to_ids(w) for w in ("Yes", "yes", "No", "no")]
    for image, prompt, got in zip(images, ("a cat", "b"), judge(images, ["a cat", "b"])):
        p = logits(judge.vlm, image[None], f'Does this image show "{prompt}"? Answer with yes or no.').softmax(0)[ids]
        torch.testing.assert_close(got, p[:2].sum() / p.sum())


@torch.no_grad()
def test_a_number_is_the_expectation_over_the_scale():
    judge, images = VLMJudge("tiny", "number", "Rate {prompt} from {low} to {high}.", low=0, high=3, dtype="float32"), picture(2, 32, 32)
    ids = [judge.vlm.tokenizer.convert_tokens_to_ids(k) for k in "0123"]
    for image, prompt, got in zip(images, ("a cat", "b"), judge(images, ["a cat", "b"])):
        p = logits(judge.vlm, image[None], f"Rate {prompt} from 0 to 3.")[ids].softmax(0)
        torch.testing.assert_close(got, p[1] + 2 * p[2] + 3 * p[3])
    with pytest.raises(ValueError, match="'10' is 2 tokens of this model"):
        VLMJudge("tiny", "number", high=10)


def test_a_text_is_read_strictly():
    judge, images = VLMJudge("tiny", "text", dtype="float32"), picture(2, 32, 32)
    assert not judge.differentiable and set(judge(images, ["a", "b"]).tolist()) <= {1, 2, 3, 4, 5}
    tiny.speak(judge.vlm, ["It is nice. Score: 4.5"])
    assert judge(images, ["a", "b"]).tolist() == [4.5, 4.5]
    tiny.speak(judge.vlm, ["Score: 6"])
    with pytest.raises(ValueError, match="must say `Score:` and a number from 1 to 5 once; it said 'Score: 6'"):
        judge(images, ["a", "b"])


@pytest.mark.parametrize("read", ["yes", "number"])
def test_gradients_reach_the_image(read):
    judge = VLMJudge("tiny", read, dtype="float32")
    assert judge.differentiable
    check_gradient(lambda x: judge(x, ["a"]).sum(), picture(1, 24, 40), 0.02, 0.1)


@torch.no_grad()
def test_pairs_are_read_from_the_logits_of_1_and_2_in_both_orders():
    judge, (a, b) = VLMPairs("tiny", "Which shows {prompt}?", dtype="float32"), picture(2, 32, 32)
    ids = [judge.vlm.tokenizer.convert_tokens_to_ids(k) for k in "12"]
    first = logits(judge.vlm, torch.stack([a, b]), "Which shows a cat?")[ids].softmax(0)[0]
    second = logits(judge.vlm, torch.stack([b, a]), "Which shows a cat?")[ids].softmax(0)[0]
    got = judge(torch.stack([a, b]), ["a cat"] * 2)
    torch.testing.assert_close(got, torch.stack([(first + 1 - second) / 2, (second + 1 - first) / 2]))
    assert got[0] != got[1]


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
def test_answers_are_yes_where_the_model_says_yes(monkeypatch):
    reward, images = VisionReward("tiny", dtype="float32", chunk=4), picture(3, 32, 32)
    ids = [reward.vlm.tokenizer.convert_tokens_to_ids(w) for w in ("Yes", "yes", "No", "no")]
    total = []
    for image in images:
        a = []
        for question in reward.questions:
            p = logits(reward.vlm, image[None], question).softmax(0)[ids]
            a.append(1 if p[:2].sum() > p[2:].sum() else -1)
        total.append(a[1] + a[2] * (a[0] > 0))
    assert reward(images, ["a"] * 3).tolist() == total
