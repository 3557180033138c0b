"""LLMScore: a language model compares a description of the image with the prompt."""

import torch
from torch import Tensor

from lit_align.metrics.benchmark import Benchmark
from lit_align.rewards import tiny
from lit_align.rewards.answers import Unreadable
from lit_align.rewards.published import published
from lit_align.rewards.vlm import VLM, DType

INSTRUCTION = (
    "https://raw.githubusercontent.com/YujieLu10/LLMScore/063eae427104290d8e59a2cc4c033deb343f1725/llm_evaluator/"
    "evaluation_instruction.py"
)
DESCRIBE = (
    "Describe this image: first the whole scene in one sentence, then each object with its number, colour, shape, "
    "size, material and place, and how the objects relate."
)


class LLMScore(Benchmark):
    """LLMScore (Lu et al. 2023, arXiv 2305.11116): how well a description of the image matches the prompt, 0 to 100, as
    a language model rates it by the released instruction; `llm_score/errors` is the number of composition errors that
    it names, 0 to 9.

    One vision-language model describes the image and then, without seeing it, rates the description. The paper has
    BLIP-2's caption and GRiT's of regions, merged and rated by GPT-4: figures differ. An answer that does not begin
    with the two numbers is not guessed at: it stops the run.

    Args:
        instruction: the released evaluation_instruction.py: a file or an https address. It is read, never run.
        pretrained: hub id or folder of an image-text-to-text model of transformers.
        dtype: of the weights.
        chunk: images in one forward pass.
    """

    name, artefact = "llm_score", "`Qwen/Qwen2.5-VL-7B-Instruct`; the instruction of github.com/YujieLu10/LLMScore"
    blind_to = "what the description leaves out"

    def __init__(
        self,
        instruction: str = INSTRUCTION,
        pretrained: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        dtype: DType = "bfloat16",
        chunk: int = 8,
    ):
        super().__init__()
        self.vlm = VLM(pretrained, dtype, chunk)
        self.instruction = "" if pretrained == "tiny" else published(instruction, "composition errors")
        if pretrained == "tiny":
            tiny.speak(self.vlm, ["70\n2\nx\ny"])

    def judge(self, images: Tensor, prompts: list[str]) -> list[dict]:
        said = self.vlm.answers(images[:, None], [DESCRIBE] * len(images), 512)
        asked = [f"Text Prompt: {p}\nImage Description: {d}\n{self.instruction}" for p, d in zip(prompts, said)]
        found = [two_numbers(answer) for answer in self.rated(asked)]
        records = zip(found, said, strict=True)
        return [
            {"scores": [("", score), ("errors", errors)], "llm_score": score, "description": text, "rationale": why}
            for (score, errors, why), text in records
        ]

    @torch.no_grad()
    def rated(self, texts: list[str]) -> list[str]:
        """Answers to texts alone."""
        said, vlm = [], self.vlm
        for text in texts:
            words = vlm.tokenizer(vlm.chat(0, text), return_tensors="pt").to(vlm.model.device)
            ids = vlm.model.generate(**words, max_new_tokens=512, do_sample=False)[:, words.input_ids.shape[1] :]
            said += vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return said


def two_numbers(answer: str) -> tuple[float, float, str]:
    """The first two lines of an answer, a rating and a number of errors, and the rest. Unreadable if they are not."""
    lines = [line.strip() for line in answer.split("\n") if line.strip()]
    if len(lines) < 2 or not all(line.isdigit() for line in lines[:2]):
        raise Unreadable(f"the model must give a rating and a number of errors in two lines; it said {answer!r}.")
    rating, errors = float(lines[0]), float(lines[1])
    if rating > 100 or errors > 9:
        raise Unreadable(f"the rating must be at most 100 and the errors at most 9; the model said {answer!r}.")
    return rating, errors, " ".join(lines[2:])
