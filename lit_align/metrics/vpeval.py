"""VPEval: small programs that ask a vision-language model about an image."""

import ast
import json
import re
from pathlib import Path

from torch import Tensor

from lit_align.metrics.benchmark import Benchmark
from lit_align.paths import fetch
from lit_align.rewards.vlm import VLM, DType

PROGRAMS = (
    "https://raw.githubusercontent.com/aszala/VPEval/e5f29268cd8278d2616b12edccf3c05e728a9f6f/data/open_ended/"
    "all_evaluation_programs.json"
)
WORDS = {"one": "1", "two": "2", "three": "3", "four": "4"}
Step = tuple[str, list[str]]  # a module and its texts


def steps_of(program: str) -> tuple[list[Step], int]:
    """The steps of a published program such as "objectEval(image, 'dog');countEval(objDet(image, 'dog'), '==2')", and
    the number of those that cannot be read, which the released code leaves out. Nothing is run."""
    steps, unread = [], 0
    for text in program.replace("iamge", "image").replace("\\", "").split(";"):
        try:
            call = ast.parse(text.strip(), mode="eval").body
            inner = [arg for arg in call.args if isinstance(arg, ast.Call)]
            constants = [
                arg.value for arg in [*(a for c in inner for a in c.args), *call.args] if isinstance(arg, ast.Constant)
            ]
            if call.func.id not in ARGUMENTS or len(constants) != ARGUMENTS[call.func.id]:
                raise ValueError(text)
            steps.append((call.func.id, [str(value) for value in constants]))
        except (SyntaxError, ValueError, AttributeError):
            unread += bool(text.strip())
    return steps, unread


ARGUMENTS = {"objectEval": 1, "textEval": 1, "countEval": 2, "spatialEval": 1, "scaleEval": 1, "vqa": 3}


def article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class VPEval(Benchmark):
    """VPEval on open-ended prompts (Cho et al. 2023, arXiv 2305.15328): the share of a program's steps that hold for an
    image, a mean over images. A step asks for an object, its number, a text, a place, a size, or anything (vqa).

    All steps are answered by a vision-language model here, as the released code does with --use_obj_vqa for objects,
    places and sizes; it has GroundingDINO, EasyOCR and BLIP-2. A step that cannot be read does not count, as there, and
    stands as `unread` in the image's record.

    Takes the column `id`, the key of a prompt's program (coco_669925).

    Args:
        programs: the published all_evaluation_programs.json.
        pretrained: hub id or folder of an image-text-to-text model of transformers; "tiny" for random weights.
        dtype: of the weights.
        chunk: questions in one forward pass.
    """

    name, artefact = "vpeval", "`Qwen/Qwen2.5-VL-7B-Instruct`; the programs of github.com/aszala/VPEval"
    blind_to = "what the model cannot see or count"

    def __init__(
        self,
        programs: str = PROGRAMS,
        pretrained: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        dtype: DType = "bfloat16",
        chunk: int = 8,
    ):
        super().__init__()
        self.programs = json.loads(Path(fetch(programs)).read_text())
        self.vlm = VLM(pretrained, dtype, chunk)

    def judge(self, images: Tensor, prompts: list[str], id) -> list[dict]:
        return [self.one(image, key) for image, key in zip(images, id, strict=True)]

    def one(self, image: Tensor, key: str) -> dict:
        if key not in self.programs:
            raise ValueError(f"there is no program {key}: take the prompts of VPEval, with their column `id`.")
        steps, unread = steps_of(self.programs[key])
        if not steps:
            raise ValueError(f"the program {key} has no step that can be read: {self.programs[key]!r}.")
        held = [bool(getattr(self, module)(image, *texts)) for module, texts in steps]
        score = sum(held) / len(held)
        said = {f"{module}({', '.join(texts)})": yes for (module, texts), yes in zip(steps, held)}
        return {"scores": [("", score)], "vpeval": score, "steps": said, "unread": unread}

    def all_yes(self, image: Tensor, *questions: str) -> bool:
        texts = [f"{question} Answer with yes or no." for question in questions]
        return bool((self.vlm.yes(image.expand(len(texts), 1, -1, -1, -1), texts) > 0.5).all())

    def say(self, image: Tensor, text: str) -> str:
        return self.vlm.answers(image[None, None], [text], 16)[0].strip().strip(".").lower()

    def objectEval(self, image: Tensor, name: str) -> bool:
        return self.all_yes(image, f"Is there {article(name)} in the image?")

    def textEval(self, image: Tensor, text: str) -> bool:
        return self.all_yes(image, f'Is the text "{text}" written in the image?')

    def countEval(self, image: Tensor, name: str, wanted: str) -> bool:
        said = re.search(r"\d+", self.say(image, f"How many of these are in the image: {name}? Answer with a number."))
        for word, digit in WORDS.items():
            wanted = wanted.replace(word, digit)
        rule = re.fullmatch(r"\s*(==|=|>=|<=|>|<|!=)?\s*(\d+)\s*", wanted)
        if not said or not rule:
            return False
        n, m = int(said[0]), int(rule[2])
        return {">": n > m, "<": n < m, ">=": n >= m, "<=": n <= m, "!=": n != m}.get(rule[1], n == m)

    def spatialEval(self, image: Tensor, relation: str) -> bool:
        first, second, place = (part.strip() for part in (relation.split(",") + ["", ""])[:3])
        place = {"left": "to the left of", "right": "to the right of", "front": "in front of"}.get(place, place)
        return self.related(image, first, second, f"Is the {first} {place} the {second}?")

    def scaleEval(self, image: Tensor, relation: str) -> bool:
        first, second, size = (part.strip() for part in (relation.split(",") + ["", ""])[:3])
        than = "the same size as" if "same" in size else f"{size} than"
        return self.related(image, first, second, f"Is the {first} {than} the {second}?")

    def related(self, image: Tensor, first: str, second: str, question: str) -> bool:
        there = [f"Is there {article(name)} in the image?" for name in (first, second)]
        return self.all_yes(image, *(there if first != second else [f"Are there two of these: {first}?"]), question)

    def vqa(self, image: Tensor, question: str, choices: str, wanted: str) -> bool:
        said = self.say(image, f"{question} Answer with one of: {', '.join(choices.split(','))}.")
        return said == wanted.strip().lower()
