"""Text in images: how much of the text that a prompt asks for can be read."""

import re
from typing import Any

import torch
from torch import Tensor

from lit_align.rewards.http import to_uint8
from lit_align.rewards.reward import Reward


def target_text(prompt: str) -> str:
    """The text between a prompt's first pair of straight double quotes. Raises ValueError if there is none."""
    match = re.search(r'"([^"]*)"', prompt)
    if not match or not bare(match[1]):
        raise ValueError(f'the prompt {prompt!r} names no text to write: put it between straight double quotes (").')
    return match[1]


def bare(text: str) -> str:
    """Lower case, without spaces."""
    return text.replace(" ", "").lower()


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the least number of characters to insert, delete or replace."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def accuracy(read: str, target: str) -> float:
    """max(0, 1 - edit distance / length of the target), both in lower case and without spaces; 1 if what was read
    contains the target."""
    read, target = bare(read), bare(target)
    return 1.0 if target in read else max(0.0, 1 - edit_distance(read, target) / len(target))


class OCR(Reward):
    """Flow-GRPO's reward of text rendering (Liu et al. 2025, arXiv 2505.05470, and its code): `accuracy` of all text
    that is read in the image, in reading order, against the text between the prompt's first pair of straight double
    quotes. Needs `pip install 'lit-align[ocr]'`.

    Text is read by RapidOCR: PaddleOCR's models (PP-OCRv6 small, which its package carries) under ONNX Runtime, without
    an angle classifier, and every line with a confidence above 0. The paper reads with PaddleOCR 2's English models, so
    single scores differ; other models are set by `settings`.

    Raises ValueError for a prompt without such text (the released code ends with an error there).

    Args:
        settings: of RapidOCR, such as {Rec.model_path: en_PP-OCRv4_rec.onnx, EngineConfig.onnxruntime.use_cuda: true}.
    """

    name, differentiable = "ocr", False
    artefact = "PP-OCRv6 small, in the wheel of rapidocr"
    licence = "Apache-2.0"
    scale = "share of the text's characters, 0 to 1"
    blind_to = "everything but text; further text beside the right one; upper case and spaces"

    def __init__(self, settings: dict[str, Any] | None = None):
        super().__init__()
        try:
            from rapidocr import RapidOCR
        except ModuleNotFoundError as error:
            raise ValueError("OCR needs RapidOCR: pip install 'lit-align[ocr]'.") from error
        ours = {"Global.use_cls": False, "Global.text_score": 0.0, "Global.log_level": "error"}
        ours |= {"Det.limit_type": "max", "Det.limit_side_len": 960}  # PaddleOCR 2's
        self.reader = RapidOCR(params=ours | (settings or {}))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        targets = [target_text(prompt) for prompt in prompts]
        scores = [accuracy(self.read(image), text) for image, text in zip(to_uint8(images), targets, strict=True)]
        return torch.tensor(scores, device=images.device)

    def read(self, image: Tensor) -> str:
        """The text in an image (3, H, W), uint8."""
        found = self.reader(image.permute(1, 2, 0).flip(2).numpy().copy())  # BGR
        return "".join(getattr(found, "txts", None) or ())  # boxes alone, or nothing, where no text was found
