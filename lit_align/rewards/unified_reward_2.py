"""UnifiedReward 2.0, which writes scores of alignment, coherence and style, of an image or of two."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.rewards.answers import Unreadable, read_all, the_number
from lit_align.rewards.pairwise import PairwiseReward
from lit_align.rewards.reward import Reward
from lit_align.rewards.unified_reward import QWEN, Writer
from lit_align.rewards.vlm import DType

POINT_2 = QWEN + "UnifiedReward-2.0-inference/point_score_ACS_image_generation.py"
PAIR_2 = QWEN + "UnifiedReward-2.0-inference/pair_score_image_generation.py"
ASPECTS = ("Alignment", "Coherence", "Style")


def shares(answer: str) -> float:
    """Image 1's share, the mean over alignment, coherence and style. Unreadable unless each gives both images a share
    in [0, 1] once, and they sum to 1."""
    total = 0.0
    for i, aspect in enumerate(ASPECTS):
        _, found, part = answer.partition(f"{aspect} Score:")
        for later in ASPECTS[i + 1 :]:
            part = part.partition(f"{later} Score:")[0]
        if not found or answer.count(f"{aspect} Score:") != 1:
            raise Unreadable(f"the judge must say `{aspect} Score:` once; it said {answer!r}.")
        first, second = (the_number(part, f"Image {k}:", 0, 1) for k in (1, 2))
        if abs(first + second - 1) > 0.01:
            raise Unreadable(f"the {aspect} scores of two images must sum to 1; the judge said {answer!r}.")
        total += first
    return total / len(ASPECTS)


class UnifiedReward2(Reward):
    """The mean of the alignment, coherence and style scores that UnifiedReward 2.0 writes; each is logged.

    Args:
        pretrained: hub id or folder; 2.0-qwen-{3,7,32,72}b or 2.0-qwen3vl-{2,4,8,32}b.
        question: the published script in which the question stands: a file or an https address.
        dtype: of the weights.
        chunk: images answered at once.
        max_tokens: of an answer.
        on_failure: at an answer without a score: stop the run with a sentence that names it, or mask the image.
    """

    name, differentiable, names = "unified_reward_2", False, ("alignment", "coherence", "style")
    artefact, licence = "`CodeGoat24/UnifiedReward-2.0-qwen-7b` and its other sizes", "MIT"
    scale = "1 to 5"
    blind_to = "what its answer does not weigh"

    def __init__(
        self,
        pretrained: str = "CodeGoat24/UnifiedReward-2.0-qwen-7b",
        question: str = POINT_2,
        dtype: DType = "bfloat16",
        chunk: int = 8,
        max_tokens: int = 512,
        on_failure: Literal["stop", "mask"] = "stop",
    ):
        super().__init__()
        self.on_failure, self.masks = on_failure, on_failure == "mask"
        said = ["\n".join(f"{a} Score (1-5): {k}.5" for a in ASPECTS) for k in range(1, 5)]
        self.writer = Writer(pretrained, question, dtype, chunk, max_tokens, said)
        self.latest: dict[str, Tensor] = {}  # name -> (N,), the scores of the last call

    def components(self, images: Tensor, prompts: list[str]) -> Tensor:
        said = self.writer(images[:, None], prompts)
        read = lambda aspect: lambda answer: the_number(answer, f"{aspect} Score (1-5):", 1, 5)
        return torch.stack([read_all(read(a), said, self.on_failure) for a in ASPECTS], 1).to(images.device)

    def combine(self, components: Tensor) -> Tensor:
        self.latest = dict(zip(self.names, components.unbind(1), strict=True))
        return components.mean(1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.combine(self.components(images, prompts))


class UnifiedReward2Pairs(PairwiseReward):
    """Win rate in the group (see PairwiseReward), by the shares of alignment, coherence and style that UnifiedReward
    2.0 gives to two images.

    Args:
        pretrained: hub id or folder; 2.0-qwen-{3,7,32,72}b or 2.0-qwen3vl-{2,4,8,32}b.
        question: the published script in which the question stands: a file or an https address.
        dtype: of the weights.
        chunk: pairs answered at once.
        max_tokens: of an answer.
    """

    name = "unified_reward_2_pairs"
    artefact, licence = UnifiedReward2.artefact, "MIT"
    blind_to = "what its answer does not weigh"

    def __init__(
        self,
        pretrained: str = "CodeGoat24/UnifiedReward-2.0-qwen-7b",
        question: str = PAIR_2,
        dtype: DType = "bfloat16",
        chunk: int = 8,
        max_tokens: int = 512,
    ):
        super().__init__()
        said = [
            "\n\n".join(f"{a} Score:\n Image 1: 0.{k}\n Image 2: 0.{10 - k}" for a in ASPECTS) for k in range(1, 10)
        ]
        self.writer = Writer(pretrained, question, dtype, chunk, max_tokens, said)

    def compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([shares(answer) for answer in self.writer(torch.stack([first, second], 1), prompts)])
