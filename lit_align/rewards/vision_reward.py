"""VisionReward: a checklist of yes-no questions, summed with published weights."""

import json
from pathlib import Path

import torch
from torch import Tensor

from lit_align.paths import fetch
from lit_align.rewards.reward import Reward, components
from lit_align.rewards.vlm import VLM, DType

FOLDER = (
    "https://raw.githubusercontent.com/THUDM/VisionReward/511960d61a777b2008cd486a85a090ba96792a32/VisionReward_Image/"
)
MASKS = {0: [22, 23, 24, 28, 29], 1: [25, 26], 2: [27]}  # of the selected questions: body, face and hands


class VisionReward(Reward):
    """sum_i w_i a_i, a_i = 1 where the judge says yes to question i and -1 where no (Xu et al. 2024, arXiv 2412.21059;
    as released for images). A question that asks whether something is there has no weight: where the
    answer is no, the answers on it are 0.

    The released judge is a CogVLM2, which transformers does not have: any chat model answers here, and the weights,
    which were fitted to CogVLM2's answers, are what is published. The released weights begin with that of the
    alignment, which is VQAScore's.

    Args:
        pretrained: see VLMJudge.
        questions: a text file with a question to a line: a path or an https address.
        weights: a JSON file with `coef`, numbers in the order of `alignment` (where there is one) and of the questions
            that are no key of `masks`; and `intercept`.
        masks: index of a question whether something is there -> indices of those that are 0 without it (default: those
            of the released questions).
        alignment: reward whose score the first weight multiplies.
        dtype: of the weights.
        chunk: questions in one forward pass.
    """

    name, differentiable = "vision_reward", False
    artefact = "questions and weights of github.com/THUDM/VisionReward; any chat model in place of its CogVLM2"
    licence = "Apache-2.0"
    scale = "a weighted sum; with the released weights -2 to 5"
    blind_to = "what is not on the list; the prompt, but for the alignment"

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        questions: str = FOLDER + "VisionReward_image_qa_select.txt",
        weights: str = FOLDER + "weight_select.json",
        masks: dict[int, list[int]] | None = None,
        alignment: Reward | None = None,
        dtype: DType = "bfloat16",
        chunk: int = 8,
    ):
        super().__init__()
        self.vlm, self.alignment = VLM(pretrained, dtype, chunk), alignment
        self.masks = MASKS if masks is None else masks
        if pretrained == "tiny":
            self.questions, self.masks = ["Is there a hand?", "Is it sharp?", "Is the hand right?"], {0: [2]}
            fitted = {"coef": [1.0] * (2 + bool(alignment)), "intercept": [0.0]}
        else:
            self.questions = [line.strip() for line in Path(fetch(questions)).read_text().splitlines() if line.strip()]
            fitted = json.loads(Path(fetch(weights)).read_text())
        asked, needed = len(self.questions) - len(self.masks), len(fitted["coef"]) - bool(alignment)
        if asked != needed:
            why = "the first of the released ones is of the alignment: set alignment to VQAScore"
            raise ValueError(
                f"{weights} has {len(fitted['coef'])} weights for {asked + bool(alignment)} answers; {why}."
            )
        self.coef, self.intercept = torch.tensor(fitted["coef"]), fitted["intercept"][0]

    def answers(self, images: Tensor) -> Tensor:
        """1, -1 or 0 for each weighted question: (N, Q)."""
        n, q = len(images), len(self.questions)
        p = self.vlm.yes(images.repeat_interleave(q, 0)[:, None], self.questions * n).view(n, q)
        a = torch.where(p > 0.5, 1.0, -1.0)
        for there, about in self.masks.items():
            a[:, about] *= (a[:, there] > 0).float()[:, None]
        return a[:, [i for i in range(q) if i not in self.masks]]

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        a = self.answers(images)
        if self.alignment is not None:
            a = torch.cat([components(self.alignment, images, {"prompt": prompts}).to(a)[:, None], a], 1)
        return a @ self.coef.to(a) + self.intercept
