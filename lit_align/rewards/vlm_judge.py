"""Any chat model that sees images, as a judge."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.rewards import tiny
from lit_align.rewards.answers import read_all, the_number
from lit_align.rewards.pairwise import PairwiseReward
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm import VLM, DType

SHOWS = 'Does this image show "{prompt}"? Answer with yes or no.'
RATE = (
    'The image was made for the prompt "{prompt}". Rate it from {low} to {high}: does it show the prompt, and does it '
    "look good? Answer with {form}."
)
WHICH = (
    'Two images were made for the prompt "{prompt}". Which one shows it better and looks better? Answer with 1 for the '
    "first or 2 for the second, alone."
)


class VLMJudge(Reward):
    """A chat model's opinion of an image, in this process (ServedVLMJudge asks a server).

    - `yes_no`: P(yes) / (P(yes) + P(no)) of the answer's first token.
    - `expectation`: the expected number of the answer's first token, over the whole numbers from low to high.
    - `number`: the number after `Score:` in the whole answer.

    Args:
        pretrained: hub id or folder of an image-text-to-text model of transformers that has a chat template.
        answer: yes_no, expectation or number.
        question: asked with the image; {prompt} in it becomes the prompt, {low} and {high} the ends of the scale
            (default: whether the image shows the prompt; for numbers, how well it does and how good it looks).
        low: the lowest number.
        high: the highest.
        dtype: of the weights.
        chunk: images in one forward pass.
        max_tokens: of an answer that is a number.
        on_failure: at an answer without a number: stop the run with a sentence that names it, or mask the image.
    """

    name = "vlm_judge"
    artefact = "any image-text-to-text model of transformers"
    licence = "the model's own"
    scale = "yes_no: probability in [0, 1]; others: low to high"
    blind_to = "what the model cannot see or count; wording of the question shifts it"

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        answer: Literal["yes_no", "expectation", "number"] = "yes_no",
        question: str | None = None,
        low: int = 1,
        high: int = 5,
        dtype: DType = "bfloat16",
        chunk: int = 8,
        max_tokens: int = 256,
        on_failure: Literal["stop", "mask"] = "stop",
    ):
        super().__init__()
        self.vlm, self.answer, self.max_tokens = VLM(pretrained, dtype, chunk), answer, max_tokens
        self.low, self.high, self.on_failure = low, high, on_failure
        self.masks = answer == "number" and on_failure == "mask"
        question = question or (SHOWS if answer == "yes_no" else RATE)
        self.question = question.replace("{low}", str(low)).replace("{high}", str(high))
        form = "`Score:` and the number alone" if answer == "number" else "the number alone"
        self.question = self.question.replace("{form}", form)
        self.differentiable = self.vlm.differentiable and answer != "number"
        if answer == "expectation":
            self.ids = [self.vlm.token(str(k)) for k in range(low, high + 1)]
        if answer == "number" and pretrained == "tiny":
            tiny.speak(self.vlm, [f"Score: {k}" for k in range(low, high + 1)])

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.ask(images[:, None], prompts)

    def ask(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The model's opinions (N,) of K images to a question, (N, K, 3, H, W)."""
        texts = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        if self.answer == "yes_no":
            return self.vlm.yes(images, texts)
        if self.answer == "expectation":
            p = self.vlm.next_token(images, texts, self.ids).softmax(1)
            return p @ torch.arange(self.low, self.high + 1, device=p.device, dtype=p.dtype)
        said = self.vlm.answers(images, texts, self.max_tokens)
        return read_all(lambda a: the_number(a, "Score:", self.low, self.high), said, self.on_failure).to(images.device)


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
        dtype: DType = "bfloat16",
        chunk: int = 8,
    ):
        super().__init__()
        self.vlm, self.question = VLM(pretrained, dtype, chunk), question
        self.ids = [self.vlm.token("1"), self.vlm.token("2")]

    def compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        texts = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        return self.vlm.next_token(torch.stack([first, second], 1), texts, self.ids).softmax(1)[:, 0]
