"""A chat model as a judge of edits: it is shown the image before and after."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.rewards.vlm_judge import VLMJudge

EDITED = (
    'The first image was edited by the instruction "{prompt}"; the second is the result. Does it do what the '
    "instruction asks for, and leave the rest as it was? Answer with yes or no."
)
RATE = (
    'The first image was edited by the instruction "{prompt}"; the second is the result. Rate it from {low} to {high}: '
    "does it do what the instruction asks for, and leave the rest as it was? Answer with {form}."
)


class VLMEditJudge(VLMJudge):
    """A chat model's opinion of an edit (see VLMJudge): its turn holds the row's `source`, an image of the size of the
    edited one, and then the edited one.

    Args:
        pretrained, answer: see VLMJudge.
        question: asked with the two images (default: whether the edit does what the instruction asks for).
    """

    name = "vlm_edit_judge"

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        answer: Literal["yes_no", "expectation", "number"] = "yes_no",
        question: str | None = None,
        **kwargs,
    ):
        question = question or (EDITED if answer == "yes_no" else RATE)
        super().__init__(pretrained, answer=answer, question=question, **kwargs)

    def forward(self, images: Tensor, prompts: list[str], source: list[Tensor]) -> Tensor:
        before = torch.stack([image.to(images) for image in source])
        return self.ask(torch.stack([before, images], 1), prompts)
