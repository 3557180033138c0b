"""A vision-language model behind an OpenAI-compatible server (vLLM, SGLang, or a provider) as a judge."""

import base64
import json
import math
import re
from typing import Literal

import torch
from torch import Tensor

from lit_align.rewards.http import png
from lit_align.rewards.remote import Remote, Request

QUESTIONS = {
    "yes_no": 'Does this figure show "{prompt}"? Please answer yes or no.',
    "number": 'From {low} to {high}, how well does this image show "{prompt}"? Answer with one number, nothing else.',
}


class ServedVLMJudge(Remote):
    """Asks a served vision-language model about each image, by POST /v1/chat/completions at temperature 0.

    - `yes_no`: P(yes) / (P(yes) + P(no)) of the answer's first token, in [0, 1], from its 20 most likely tokens; needs
      a server that gives logprobs. With the default question it is VQAScore's (Lin et al. 2024, arXiv 2404.01291)
      normalised over the two answers.
    - `number`: the number that the answer consists of, in [low, high]; or the one that `pattern` finds.

    An answer that is neither is not guessed at, nor asked for again: it is a failure (see Remote).

    Args:
        model: as the server calls it.
        urls: servers of that model, which are asked in turn: http://127.0.0.1:8000.
        answer: yes_no or number.
        question: asked with the image; `{prompt}` in it becomes the prompt (default: one for each kind of answer).
        pattern: regular expression whose group is the number, such as `Final Score: ([\\d.]+)`.
        low: the lowest number that an answer may give.
        high: the highest.
        max_tokens: of an answer.
        name: in logs.
        concurrency: requests at once; a request has one image.
        timeout: seconds until an attempt has failed.
        retries: attempts after the first.
        backoff: seconds before the first retry; doubled at each further one.
        on_failure: after the last attempt, or at an answer that cannot be read: stop the run, or mask the image.
        token_env: environment variable with the key.
    """

    artefact = "any vision-language model behind an OpenAI-compatible server"
    licence = "the model's own"
    scale = "yes_no: probability in [0, 1]; number: low to high"
    blind_to = "what the model cannot see or count; wording of the question shifts it"

    def __init__(
        self,
        model: str,
        urls: list[str],
        answer: Literal["yes_no", "number"] = "yes_no",
        question: str | None = None,
        pattern: str | None = None,
        low: float = 1.0,
        high: float = 5.0,
        max_tokens: int = 16,
        name: str = "vlm",
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        on_failure: Literal["stop", "mask"] = "stop",
        token_env: str = "OPENAI_API_KEY",
    ):
        super().__init__(urls, 1, concurrency, timeout, retries, backoff, on_failure, token_env)
        self.model, self.answer, self.pattern, self.low, self.high = model, answer, pattern, low, high
        question = question or QUESTIONS[answer].replace("{low}", f"{low:g}").replace("{high}", f"{high:g}")
        self.question, self.max_tokens, self.name = question, max_tokens, name
        if pattern and (answer != "number" or re.compile(pattern).groups != 1):
            raise ValueError(f"pattern {pattern!r} must have one group, and goes with answer: number.")

    def request(self, images: Tensor, prompts: list[str], columns: dict[str, list]) -> Request:
        url = "data:image/png;base64," + base64.b64encode(png(images[0])).decode()
        text = self.question.replace("{prompt}", prompts[0])
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        if self.answer == "yes_no":
            body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        else:
            body |= {"max_tokens": self.max_tokens}
        return Request("/v1/chat/completions", json.dumps(body).encode())

    def read(self, body: bytes, n: int) -> Tensor:
        try:
            choice = json.loads(body)["choices"][0]
            text = choice["message"]["content"]
            tokens = choice["logprobs"]["content"][0]["top_logprobs"] if self.answer == "yes_no" else []
            found = [(token["token"].strip().lower(), float(token["logprob"])) for token in tokens]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            lacks = "a chat completion with logprobs" if self.answer == "yes_no" else "a chat completion"
            raise ValueError(f"the answer is not {lacks}") from error
        score = probability_of_yes(found) if self.answer == "yes_no" else self.number(str(text))
        return torch.tensor([score])

    def number(self, text: str) -> float:
        """The number in an answer. Raises ConnectionError if there is none in [low, high], or more than one."""
        numbers = re.findall(self.pattern, text) if self.pattern else [text.strip()]
        if len(numbers) != 1 or not re.fullmatch(r"[+-]?\d+(\.\d+)?", numbers[0]):
            raise ConnectionError(f"{self.model} answered {text[:80]!r}, which is not one number.")
        if not self.low <= float(numbers[0]) <= self.high:
            raise ConnectionError(f"{self.model} answered {numbers[0]}, outside {self.low:g} to {self.high:g}.")
        return float(numbers[0])


def probability_of_yes(tokens: list[tuple[str, float]]) -> float:
    """P(yes) / (P(yes) + P(no)) from tokens, in lower case, and their log-probabilities. Raises ConnectionError if
    neither is among them."""
    yes, no = (sum(math.exp(p) for token, p in tokens if token == word) for word in ("yes", "no"))
    if not yes + no > 0:
        raise ConnectionError("the likely first words of the model's answer are neither yes nor no.")
    return yes / (yes + no)
