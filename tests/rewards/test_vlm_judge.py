"""Any chat model as a judge."""

import pytest
import torch
from pictures import check_gradient, picture

from lit_align.rewards import tiny
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
def test_an_expectation_is_over_the_scale():
    judge, images = VLMJudge("tiny", "expectation", "Rate {prompt} from {low} to {high}.", low=0, high=3, dtype="float32"), picture(2, 32, 32)
    ids = [judge.vlm.tokenizer.convert_tokens_to_ids(k) for k in "0123"]
    for image, prompt, got in zip(images, ("a cat", "b"), judge(images, ["a cat", "b"])):
        p = logits(judge.vlm, image[None], f"Rate {prompt} from 0 to 3.")[ids].softmax(0)
        torch.testing.assert_close(got, p[1] + 2 * p[2] + 3 * p[3])
    with pytest.raises(ValueError, match="'10' is 2 tokens of this model"):
        VLMJudge("tiny", "expectation", high=10)


def test_a_number_is_read_strictly():
    judge, images = VLMJudge("tiny", "number", dtype="float32"), picture(2, 32, 32)
    assert not judge.differentiable and not judge.masks and judge.question.endswith("Answer with `Score:` and the number alone.")
    assert set(judge(images, ["a", "b"]).tolist()) <= {1, 2, 3, 4, 5}
    tiny.speak(judge.vlm, ["It is nice. Score: 4.5"])
    assert judge(images, ["a", "b"]).tolist() == [4.5, 4.5]
    tiny.speak(judge.vlm, ["Score: 6"])
    with pytest.raises(ValueError, match="must say `Score:` and a number from 1 to 5 once; it said 'Score: 6'"):
        judge(images, ["a", "b"])
    judge.on_failure = "mask"
    assert judge(images, ["a", "b"]).isnan().all()
    assert VLMJudge("tiny", "number", on_failure="mask").masks and not VLMJudge("tiny", on_failure="mask").masks


@pytest.mark.parametrize("answer", ["yes_no", "expectation"])
def test_gradients_reach_the_image(answer):
    judge = VLMJudge("tiny", answer, dtype="float32")
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
