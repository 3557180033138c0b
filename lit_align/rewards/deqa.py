"""DeQA-Score: image quality as the expectation over five words for it."""

import torch
from torch import Tensor

from lit_align.paths import find
from lit_align.rewards import tiny
from lit_align.rewards.mplug_owl2 import mplug_owl2
from lit_align.rewards.published import loaded
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm import DType, in_chunks
from lit_align.rewards.vlm_images import square

# LLaMA-2's tokens of the released prompt: `USER: How would you rate the quality of this image?\n`, the image,
# `\nASSISTANT: The quality of the image is`, and of the answers excellent, good, fair, poor, bad.
BEFORE = [1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, 11029, 310, 445, 1967, 29973, 13]
AFTER = [29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338]
LEVELS = [15129, 1781, 6534, 6460, 4319]


class DeQA(Reward):
    """sum_k k P(level k), of levels 1 to 5, from the logits of the words bad, poor, fair, good and excellent (You et
    al. 2025, arXiv 2501.11561, eq. 1; mPLUG-Owl2). Flow-GRPO divides it by 5.

    Args:
        pretrained: hub id or folder of the released model.
        dtype: of the weights; probabilities are float32.
        chunk: images in one forward pass.
    """

    name, differentiable = "deqa", True
    artefact = "`zhiyuanyou/DeQA-Score-Mix3`"
    licence = "MIT"
    scale = "1 (bad) to 5 (excellent)"
    blind_to = "the prompt: quality alone"

    def __init__(self, pretrained: str = "zhiyuanyou/DeQA-Score-Mix3", dtype: DType = "float16", chunk: int = 8):
        super().__init__()
        self.chunk = chunk
        if pretrained == "tiny":
            self.model = tiny.owl(mplug_owl2())
        else:
            from transformers import LlamaConfig

            where = find(pretrained)
            config = LlamaConfig.from_pretrained(where)
            self.model = loaded(mplug_owl2(), where, pretrained, config=config, dtype=getattr(torch, dtype))
        self.side = self.model.config.visual_config["visual_model"]["image_size"]

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return in_chunks(self.expectation, self.chunk, images)

    def expectation(self, images: Tensor) -> Tensor:
        logits = self.model.next_token(square(images, self.side).to(self.model.dtype), BEFORE, AFTER)[:, LEVELS]
        return logits.float().softmax(1) @ torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], device=logits.device)
