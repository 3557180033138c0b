"""Any chat model that sees images, as a judge."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.rewards import tiny
from lit_align.rewards.pairwise import PairwiseReward
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm import VLM, the_number

SHOWS = 'Does this image show "{prompt}"? Answer with yes or no.'
RATE = (
    'The image was made for the prompt "{prompt}". Rate it from {low} to {high}: does it show the prompt, and does it '
    "look good? Answer with `Score:` and the number alone."
)
WHICH = (
    'Two images were made for the prompt "{prompt}". Which one shows it better and looks better? Answer with 1 for the '
    "first or 2 for the second, alone."
)


class VLMJudge(Reward):
    """A chat model's opinion of an image: the probability that it says yes, the expected number, or the number that it
    writes. ValueError, which names the answer, if that holds none.

    Args:
        pretrained: hub id or folder of an image-text-to-text model of transformers that has a chat template.
        read: `yes`, P(yes) / (P(yes) + P(no)) of the first token; `number`, the expectation of the first token over
            the numbers of the scale; `text`, the number after `Score:` in the whole answer.
        question: {prompt} stands for the prompt, {low} and {high} for the ends of the scale (default: whether the image
            shows the prompt; for numbers, how well it shows it and how good it looks).
        low, high: ends of the scale of numbers.
        dtype: of the weights.
        chunk: images in one forward pass.
        max_new_tokens: of a text.
    """

    name = "vlm_judge"
    artefact = "any image-text-to-text model of transformers"
    licence = "the model's own"
    scale = "a probability, or low to high"
    blind_to = "what its model does not see; Qwen-VL models pass gradients, others none"

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        read: Literal["yes", "number", "text"] = "yes",
        question: str | None = None,
        low: int = 1,
        high: int = 5,
        dtype: str = "bfloat16",
        chunk: int = 8,
        max_new_tokens: int = 256,
    ):
        super().__init__()
        self.vlm, self.read, self.max_new_tokens = VLM(pretrained, dtype, chunk), read, max_new_tokens
        self.low, self.high = low, high
        question = question or (SHOWS if read == "yes" else RATE)
        self.question = question.replace("{low}", str(low)).replace("{high}", str(high))
        self.differentiable = self.vlm.differentiable and read != "text"
        if read == "number":
            self.ids = [self.vlm.token(str(k)) for k in range(low, high + 1)]
        if read == "text" and pretrained == "tiny":
            tiny.speak(self.vlm, [f"Score: {k}" for k in range(low, high + 1)])

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        texts = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        if self.read == "yes":
            return self.vlm.yes(images[:, None], texts)
        if self.read == "number":
            p = self.vlm.next_token(images[:, None], texts, self.ids).softmax(1)
            return p @ torch.arange(self.low, self.high + 1, device=p.device, dtype=p.dtype)
        said = self.vlm.answers(images[:, None], texts, self.max_new_tokens)
        return torch.tensor([the_number(a, "Score:", self.low, self.high) for a in said], device=images.device)


class VLMPairs(PairwiseReward):
    """Win rate in the group (see PairwiseReward), by the probability of the answer 1 against the answer 2 when a chat
    model is shown two images.

    Args:
        pretrained: see VLMJudge.
        question: {prompt} stands for the prompt; it must ask for 1 or 2.
        dtype: of the weights.
        chunk: pairs in one forward pass.
    """

    name = "vlm_pairs"
    artefact, licence = VLMJudge.artefact, VLMJudge.licence
    blind_to = "what its model does not see"

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        question: str = WHICH,
        dtype: str = "bfloat16",
        chunk: int = 8,
    ):
        super().__init__()
        self.vlm, self.question = VLM(pretrained, dtype, chunk), question
        self.ids = [self.vlm.token("1"), self.vlm.token("2")]

    def compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        texts = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        return self.vlm.next_token(torch.stack([first, second], 1), texts, self.ids).softmax(1)[:, 0]
