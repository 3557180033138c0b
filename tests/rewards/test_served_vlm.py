"""A vision-language model behind an OpenAI-compatible server."""

import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from servers import scripted_server

from lit_align.rewards.reward import components
from lit_align.rewards.served_vlm import ServedVLMJudge

FAST = {"backoff": 0.01, "timeout": 5.0, "retries": 1}


def completion(text, tokens=None):
    """A chat completion as vLLM and OpenAI write it; tokens: (token, log-probability) of the first place."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tokens is not None:
        top = [{"token": t, "logprob": p, "bytes": None} for t, p in tokens]
        choice["logprobs"] = {"content": [{"token": text, "logprob": top[0]["logprob"], "top_logprobs": top}]}
    return 200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": {}}


def ask(server, n=1, **options):
    with scripted_server(*server if isinstance(server, list) else [server]) as (url, seen):
        judge = ServedVLMJudge("qwen", [url], **(FAST | options))
        return components(judge, torch.rand(n, 3, 4, 6), {"prompt": [f"p{i}" for i in range(n)]}), seen


def test_the_probability_of_yes():
    tokens = [("Yes", math.log(0.5)), (" yes", math.log(0.1)), ("No", math.log(0.2)), ("Maybe", math.log(0.1))]
    got, seen = ask(completion("Yes", tokens))
    assert got.tolist() == pytest.approx([0.6 / 0.8])
    path, headers, body = seen[0]
    asked = json.loads(body)
    assert path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert asked["model"] == "qwen" and asked["temperature"] == 0 and asked["logprobs"] and asked["top_logprobs"] == 20 and asked["max_tokens"] == 1
    picture, text = asked["messages"][0]["content"]
    assert text == {"type": "text", "text": 'Does this figure show "p0"? Please answer yes or no.'}
    prefix, data = picture["image_url"]["url"].split(",")
    assert prefix == "data:image/png;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (6, 4)


def test_no_is_a_low_score_and_a_word_far_down_is_none():
    assert ask(completion("No", [("No", math.log(0.9)), ("Yes", math.log(0.1))]))[0].item() == pytest.approx(0.1)
    assert ask(completion("Yes", [("yes", -0.01)]))[0].item() == 1.0


def test_every_image_is_asked_about_with_its_own_prompt():
    def answer(body):
        text = json.loads(body)["messages"][0]["content"][1]["text"]
        return completion(text.split()[-1])

    got, _ = ask(answer, 5, answer="number", question="how much is {prompt} of {braces} p", pattern=r"^(\w)$", low=0, max_tokens=8, on_failure="mask")
    assert got.isnan().all()  # "p" is no number

    def number(body):
        text = json.loads(body)["messages"][0]["content"][1]["text"]
        return completion(f"Score: {text[-1]}.5")

    got, seen = ask(number, 5, answer="number", question="how much is {prompt}", pattern=r"Score: (\S+)", low=0)
    assert got.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5] and json.loads(seen[0][2])["max_tokens"] == 16


@pytest.mark.parametrize("text,want", [("4", 4.0), (" 3.5\n", 3.5), ("1", 1.0), ("5.0", 5.0)])
def test_an_answer_that_is_a_number(text, want):
    got, seen = ask(completion(text), answer="number")
    assert got.tolist() == [want]
    assert "From 1 to 5, how well does this image show \"p0\"?" in json.loads(seen[0][2])["messages"][0]["content"][1]["text"]


@pytest.mark.parametrize("text", ["4/5", "four", "", "4 or 5", "The score is 4", "nan", "inf", "1e1", "7", "0", "-3"])
def test_an_answer_that_is_none_is_not_guessed_at(text):
    with pytest.raises(ConnectionError, match="qwen answered"):
        ask(completion(text), answer="number")
    got, seen = ask(completion(text), answer="number", on_failure="mask")
    assert got.isnan().all() and len(seen) == 1  # it would say the same again


def test_the_pattern_must_match_once():
    options = {"answer": "number", "pattern": r"Final Score: ([\d.]+)"}
    assert ask(completion("It is fine.\nFinal Score: 3.5"), **options)[0].item() == 3.5
    for text in ("Final Score: 3\nFinal Score: 4", "Score: 3", "Final Score: 3."):
        with pytest.raises(ConnectionError, match="not one number"):
            ask(completion(text), **options)
    for wrong in ({"pattern": r"\d"}, {"pattern": r"(\d)", "answer": "yes_no"}):
        with pytest.raises(ValueError, match="must have one group"):
            ServedVLMJudge("qwen", ["http://127.0.0.1:9"], **(options | wrong))


def test_neither_word_is_not_a_score():
    with pytest.raises(ConnectionError, match="neither yes nor no"):
        ask(completion("It", [("It", -0.1), ("The", -3.0)]))


@pytest.mark.parametrize("answer", [(200, {"choices": []}), (200, b"<html>"), completion("Yes"), (500, {"error": {"message": "CUDA out of memory"}})], ids=["empty", "html", "no logprobs", "error"])
def test_what_is_no_completion_is_asked_for_again(answer):
    good = completion("Yes", [("Yes", -0.1)])
    got, seen = ask([answer, good])
    assert got.tolist() == [1.0] and len(seen) == 2
    with pytest.raises(ConnectionError):
        ask(answer)


def test_the_key_is_sent_and_a_refusal_is_the_servers_sentence(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    _, seen = ask(completion("Yes", [("Yes", -0.1)]))
    assert seen[0][1]["Authorization"] == "Bearer sk-1"
    with pytest.raises(ValueError, match="HTTP 404, the model `qwen` does not exist"):
        ask((404, {"error": {"message": "the model `qwen` does not exist.", "type": "NotFoundError"}}))


def test_images_are_sent_without_loss_beyond_8_bits():
    seen = []

    def answer(body):
        data = json.loads(body)["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]
        seen.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
        return completion("Yes", [("Yes", -0.1)])

    image = torch.rand(1, 3, 4, 6)
    with scripted_server(answer) as (url, _):
        ServedVLMJudge("qwen", [url], **FAST)(image, ["a"])
    assert np.array_equal(seen[0], (image[0] * 255).round().byte().permute(1, 2, 0).numpy())
