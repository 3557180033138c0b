"""UnifiedReward 1 and 2.0: published questions, what is asked, strict reading, pairs."""

import re

import pytest
import torch
from pictures import picture

from lit_align.rewards import tiny
from lit_align.rewards.reward import components
from lit_align.rewards.unified_reward import UnifiedReward, UnifiedRewardPairs, verdict
from lit_align.rewards.unified_reward_2 import UnifiedReward2, UnifiedReward2Pairs, shares

ALL = [UnifiedReward, UnifiedReward2, UnifiedRewardPairs, UnifiedReward2Pairs]


def answer_2(alignment=("0.6", "0.4"), coherence=("0.25", "0.75"), style=("1.0", "0.0")):
    parts = {"Alignment": alignment, "Coherence": coherence, "Style": style}
    return "\n\n".join(f"{name} Score:\n Image 1: {a}\n Image 2: {b}" for name, (a, b) in parts.items())


@pytest.mark.parametrize("answer,value", [
    ("Image 1 is better.", 1), ("The first is sharp. Image 2 is better", 0), ("Both images are equally good.", 0.5),
])  # fmt: skip
def test_a_verdict_is_read(answer, value):
    assert verdict(answer) == value


@pytest.mark.parametrize("answer", ["", "Image 3 is better.", "image 1 is better", "Image 1 is better. Image 2 is better.", "Both images are bad."])
def test_an_answer_without_one_verdict_is_an_error_that_names_it(answer):
    with pytest.raises(ValueError, match=re.escape(f"it said {answer!r}")):
        verdict(answer)


def test_shares_are_the_mean_over_the_aspects():
    assert shares(answer_2()) == pytest.approx((0.6 + 0.25 + 1) / 3)
    assert shares(answer_2(("0.435699999332428", "0.564300000667572"))) == pytest.approx((0.4357 + 0.25 + 1) / 3)


@pytest.mark.parametrize("answer", [
    "", "Image 1: 0.5\n Image 2: 0.5", answer_2(("0.6", "0.6")), answer_2(style=("1.2", "-0.2")), answer_2(coherence=("X", "Y")), answer_2().replace("Style", "Beauty"),
    answer_2().replace("Image 2", "Image II"), answer_2() + "\n" + answer_2(), answer_2().partition("Style")[0],
])  # fmt: skip
def test_an_answer_without_all_shares_is_an_error_that_names_it(answer):
    with pytest.raises(ValueError, match="said") as error:
        shares(answer)
    assert "\n" not in str(error.value)


def ask_by_hand(vlm, images, question):
    """The answer's first token for K images and a question, the conversation written out."""
    inputs = vlm.inputs(images[None], [question])
    text = vlm.tokenizer.decode(inputs["input_ids"][0])
    pads = "<|vision_start|>" + "<|image_pad|>" * (inputs["input_ids"].eq(vlm.model.config.image_token_id).sum() // len(images)) + "<|vision_end|>"
    assert text == f"<|im_start|>user\n{pads * len(images)}{question}<|im_end|>\n<|im_start|>assistant\n"
    return vlm.model(**inputs).logits[0, -1]


def said(reward, images, question, answers):
    logits = ask_by_hand(reward.writer.vlm, images, question)
    return answers[logits[reward.writer.vlm.tokenizer.convert_tokens_to_ids(answers)].argmax()]


def read_question(reward, script, tmp_path):
    """Gives a tiny reward a question from a script in the published form, as a released model would have it."""
    from lit_align.rewards.published import published

    (tmp_path / "script.py").write_text(script)
    reward.writer.question = published(str(tmp_path / "script.py"), "Text Caption: [")


@torch.no_grad()
def test_points_are_the_numbers_that_the_model_writes(tmp_path):
    images, prompts = picture(3, 32, 32), ["a cat", "{prompt}", "x" * 40]
    reward = UnifiedReward("tiny", dtype="float32", chunk=2)
    read_question(reward, 'content = [{"text": f"Rate.\\nText Caption: [{prompt}]"}]', tmp_path)
    answers = [f"Final Score: {k}" for k in range(1, 6)]
    want = [float(said(reward, i[None], f"Rate.\nText Caption: [{p}]", answers)[-1]) for i, p in zip(images, prompts)]
    got = reward(images, prompts)
    assert got.tolist() == want and got.dtype == torch.float32
    reward.writer.vlm.chunk = 1
    assert reward(images, prompts).tolist() == want


@torch.no_grad()
def test_the_second_version_scores_three_aspects_and_their_mean():
    images, reward = picture(2, 32, 32), UnifiedReward2("tiny", dtype="float32")
    tiny.speak(reward.writer.vlm, ["Alignment Score (1-5): 4.5\nCoherence Score (1-5): 2\nStyle Score (1-5): 1.0"])
    each = components(reward, images, {"prompt": ["a", "b"]})
    assert each.tolist() == [[4.5, 2, 1]] * 2
    torch.testing.assert_close(reward(images, ["a", "b"]), torch.full((2,), 2.5))
    assert {name: r.tolist() for name, r in reward.latest.items()} == {"alignment": [4.5] * 2, "coherence": [2] * 2, "style": [1] * 2}
    tiny.speak(reward.writer.vlm, ["Alignment Score (1-5): 4.5\nStyle Score (1-5): 1.0"])
    with pytest.raises(ValueError, match="the judge must say `Coherence Score"):
        reward(images, ["a", "b"])


@torch.no_grad()
@pytest.mark.parametrize("cls,answers,value", [
    (UnifiedRewardPairs, ["Image 1 is better.", "Image 2 is better.", "Both images are equally good."], verdict),
    (UnifiedReward2Pairs, [answer_2((f"0.{k}", f"0.{10 - k}"), (f"0.{k}", f"0.{10 - k}"), (f"0.{k}", f"0.{10 - k}")) for k in range(1, 10)], shares),
])  # fmt: skip
def test_pairs_are_shown_in_both_orders(cls, answers, value):
    reward, (a, b) = cls("tiny", dtype="float32"), picture(2, 32, 32, seed=5)
    first = value(said(reward, torch.stack([a, b]), "Rate this image of a cat.", answers))
    second = value(said(reward, torch.stack([b, a]), "Rate this image of a cat.", answers))
    got = reward.preference(a[None], b[None], ["a cat"])
    torch.testing.assert_close(got, torch.tensor([(first + 1 - second) / 2]))
    torch.testing.assert_close(reward.preference(b[None], a[None], ["a cat"]), 1 - got)
    torch.testing.assert_close(reward(torch.stack([a, b]), ["a cat"] * 2), torch.cat([got, 1 - got]))


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_an_answer_that_cannot_be_read_stops_the_run_and_is_named(cls):
    reward = cls("tiny", dtype="float32")
    tiny.speak(reward.writer.vlm, ["I like it"])
    with pytest.raises(ValueError, match="said 'I like it'"):
        reward(picture(2, 32, 32), ["a", "a"])


@pytest.mark.parametrize("cls", [UnifiedReward, UnifiedReward2], ids=lambda c: c.__name__)
def test_an_answer_that_cannot_be_read_masks_its_image_where_asked(cls):
    reward = cls("tiny", dtype="float32", on_failure="mask")
    tiny.speak(reward.writer.vlm, ["I like it"])
    assert reward.masks and not cls("tiny").masks
    assert reward(picture(2, 32, 32), ["a", "a"]).isnan().all()


def test_a_script_without_the_question_is_refused(tmp_path, monkeypatch):
    from lit_align.rewards import unified_reward

    (tmp_path / "other.py").write_text("x = 'nothing'")
    monkeypatch.setattr(unified_reward, "VLM", lambda *a: torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"other.py has 0 strings that contain 'Text Caption"):
        UnifiedReward("a-model", str(tmp_path / "other.py"))
