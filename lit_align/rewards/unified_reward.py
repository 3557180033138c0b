"""UnifiedReward: a fine-tuned vision-language model that writes a score, or which of two images is better."""

from typing import Literal

import torch
from torch import Tensor, nn

from lit_align.rewards import tiny
from lit_align.rewards.answers import Unreadable, read_all, the_number
from lit_align.rewards.pairwise import PairwiseReward
from lit_align.rewards.published import published
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm import VLM, DType

QWEN = "https://raw.githubusercontent.com/CodeGoat24/UnifiedReward/ff6f520247a2d36e2aff7b2ba53a935afd437f66/inference_qwen/"
POINT = QWEN + "image_generation/qwen_point_score_image_generation.py"
PAIR = QWEN + "image_generation/qwen_pair_rank_image_generation.py"
VERDICTS = {"Image 1 is better": 1.0, "Image 2 is better": 0.0, "Both images are equally good": 0.5}


def verdict(answer: str) -> float:
    """1 if an answer says that image 1 is better, 0 if image 2, 0.5 if they are equal. Unreadable unless it
    says exactly one of these."""
    said = [value for sentence, value in VERDICTS.items() if sentence in answer]
    if len(said) != 1:
        raise Unreadable(f"the judge must say one of {', '.join(map(repr, VERDICTS))}; it said {answer!r}.")
    return said[0]


class Writer(nn.Module):
    """A model and the published question that it answers in writing.

    Args:
        pretrained: hub id or folder.
        question: the published script in which the question stands: a file or an https address.
        dtype: of the weights.
        chunk: questions answered at once.
        max_tokens: of an answer.
        tiny_answers: of which a tiny model gives one.
    """

    def __init__(
        self, pretrained: str, question: str, dtype: DType, chunk: int, max_tokens: int, tiny_answers: list[str]
    ):
        super().__init__()
        self.vlm, self.max_tokens = VLM(pretrained, dtype, chunk), max_tokens
        if pretrained == "tiny":
            self.question = tiny.QUESTION
            tiny.speak(self.vlm, tiny_answers)
        else:
            self.question = published(question, "Text Caption: [")

    def forward(self, images: Tensor, prompts: list[str]) -> list[str]:
        """Answers on images (N, K, 3, H, W), K to a prompt."""
        texts = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        return self.vlm.answers(images, texts, self.max_tokens)


class UnifiedReward(Reward):
    """The final score that the first UnifiedReward writes (Wang et al. 2025, arXiv 2503.05236).

    Args:
        pretrained: hub id or folder, in transformers' format: of the first version, the Qwen one.
        question: the published script in which the question stands: a file or an https address.
        dtype: of the weights.
        chunk: images answered at once.
        max_tokens: of an answer.
        on_failure: at an answer without a score: stop the run with a sentence that names it, or mask the image.
    """

    name, differentiable = "unified_reward", False
    artefact, licence = "`CodeGoat24/UnifiedReward-qwen-7b`", "MIT"
    scale = "1 to 5"
    blind_to = "what its answer does not weigh"

    def __init__(
        self,
        pretrained: str = "CodeGoat24/UnifiedReward-qwen-7b",
        question: str = POINT,
        dtype: DType = "bfloat16",
        chunk: int = 8,
        max_tokens: int = 512,
        on_failure: Literal["stop", "mask"] = "stop",
    ):
        super().__init__()
        self.on_failure, self.masks = on_failure, on_failure == "mask"
        said = [f"Final Score: {k}" for k in range(1, 6)]
        self.writer = Writer(pretrained, question, dtype, chunk, max_tokens, said)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        said = self.writer(images[:, None], prompts)
        return read_all(lambda a: the_number(a, "Final Score:", 1, 5), said, self.on_failure).to(images.device)


class UnifiedRewardPairs(PairwiseReward):
    """Win rate in the group (see PairwiseReward), by the image that the first UnifiedReward calls better.

    Args:
        pretrained: hub id or folder, in transformers' format: of the first version, the Qwen one.
        question: the published script in which the question stands: a file or an https address.
        dtype: of the weights.
        chunk: pairs answered at once.
        max_tokens: of an answer.
    """

    name = "unified_reward_pairs"
    artefact, licence = UnifiedReward.artefact, "MIT"
    blind_to = "what its answer does not weigh"

    def __init__(
        self,
        pretrained: str = "CodeGoat24/UnifiedReward-qwen-7b",
        question: str = PAIR,
        dtype: DType = "bfloat16",
        chunk: int = 8,
        max_tokens: int = 512,
    ):
        super().__init__()
        said = [f"{sentence}." for sentence in VERDICTS]
        self.writer = Writer(pretrained, question, dtype, chunk, max_tokens, said)

    def compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([verdict(answer) for answer in self.writer(torch.stack([first, second], 1), prompts)])
