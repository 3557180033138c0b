"""Every metric with something to measure: what tests/metrics/test_processes.py runs in one process and in two.

CASES: name -> (make(folder), updates): `updates` is a list of the arguments of `update`, one image or judgement each.
"""

import json

import torch
from parts import Darkness
from PIL import Image

from lit_align.metrics.accuracy import PairwiseAccuracy
from lit_align.metrics.dall_eval import PaintSkills, SocialBias
from lit_align.metrics.detector import OpenDetector
from lit_align.metrics.diversity import PairwiseDistance, VendiScore
from lit_align.metrics.dpg import DPGBench
from lit_align.metrics.elo import Elo, EloCorrelation
from lit_align.metrics.features import Features
from lit_align.metrics.fid import FID
from lit_align.metrics.fractal import FractalDimension
from lit_align.metrics.frontier import KLRewardFrontier
from lit_align.metrics.genai_bench import GenAIBench
from lit_align.metrics.geneval import GenEvalAccuracy
from lit_align.metrics.inception_score import InceptionScore
from lit_align.metrics.llm_score import LLMScore
from lit_align.metrics.mean_reward import MeanReward
from lit_align.metrics.mmd import CMMD, KID
from lit_align.metrics.saliency import CC, KLD, NSS, SIM, AUCJudd
from lit_align.metrics.style import StyleSimilarity
from lit_align.metrics.t2i_compbench import T2ICompBench
from lit_align.metrics.vpeval import VPEval
from lit_align.metrics.win_rate import WinRate
from lit_align.rewards.blip_vqa import BLIPVQA
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.geneval import GenEval
from lit_align.rewards.reward import Reward

N, SIDE = 12, 8


class Pixels(Features):
    """A corner of the image as features; its colours' means as classes."""

    name = "pixels"

    def extract(self, images):
        return images[:, :2, :1, :2].flatten(1)

    def classes(self, images):
        return images.mean((2, 3)) * 8


def images(n=N, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 3, SIDE, SIDE, generator=g) * 255).round() / 255


def folder_of(images, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{i:05d}.png")
    return str(folder)


def single(images, prompts=None, **columns):
    """The updates of an ImageMetric, an image each."""
    prompts = prompts or [f"p{i // 3}" for i in range(len(images))]
    return [
        {"images": images[i : i + 1], "prompts": prompts[i : i + 1]} | {k: v[i : i + 1] for k, v in columns.items()}
        for i in range(len(images))
    ]


def reference(folder):
    return folder_of(images(9, seed=1), folder / "reference")


def games(n=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 4, (n,), generator=g)
    second = (first + torch.randint(1, 4, (n,), generator=g)) % 4
    return first, second, torch.randint(0, 3, (n,), generator=g) / 2, torch.randint(0, 3, (n,), generator=g) / 2


def written(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return str(folder / name)


def maps(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    human = torch.rand(n, 5, 7, generator=g)
    return [(torch.rand(1, 5, 7, generator=g), (x * (x > 0.6))[None] * (i != 2)) for i, x in enumerate(human)]


CSV = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
CSV += "".join(f"{item},t,k,{i},{parents},e,w,{kind} - whole (x),is it {i}?\n" for item in ("p0", "p1", "p2", "p3") for i, parents, kind in ((1, "0", "entity"), (2, "1", "attribute"), (3, '"1,2"', "relation")))
GENAI = json.dumps({f"{i:05d}": {"prompt": f"p{i}", "models": {}} for i in range(4)})
SKILLS = json.dumps({"counting": [0, 2], "basic": [1], "advanced": [0, 2]})
PROGRAMS = {f"p{i}": f"objectEval(image, 'dog');countEval(objDet(image, 'dog'), '{sign}2');vqa(image, 'is it red?', 'yes,no', 'yes')" for i, sign in enumerate(("==", ">", "<", ">="))}
CLAUSES = [[{"class": "dog", "count": 1}], [{"class": "cat", "count": 2}], [{"class": "car", "count": 1, "color": "red"}]] * 4
TAGS = ["single_object", "counting", "colors"] * 4
MODELS = ["a", "b", "c", "d"]
LISTS = [([0.1, 0.5, 0.5, 0.9], [1.0, 2.0, 2.0, 3.0]), ([0.4, 0.2], [1.0, 0.0]), ([0.3, 0.3, 0.1], [2.0, 1.0, 1.0]), ([1.0, 2.0, 2.5], [3.0, 1.0, 1.0])]
CASES = {
    "accuracy": (lambda folder: PairwiseAccuracy(), [(torch.tensor(a), torch.tensor(b)) for a, b in LISTS]),
    "elo": (lambda folder: Elo(MODELS), [tuple(x[i : i + 1] for x in games()[:3]) for i in range(30)]),
    "elo_correlation": (lambda folder: EloCorrelation(MODELS), [tuple(x[i : i + 1] for x in games()) for i in range(30)]),
    "win_rate": (lambda folder: WinRate(), [(torch.tensor([float(i % 5)]), torch.tensor([float(i % 3)]), [f"p{i // 3}"]) for i in range(N)]),
    "mean_reward": (lambda folder: MeanReward(Darkness()), single(images())),
    "median_reward": (lambda folder: MeanReward(Darkness(), median=True), single(images())),
    "distance": (lambda folder: PairwiseDistance(Pixels()), single(images())),
    "vendi": (lambda folder: VendiScore(Pixels()), single(images())),
    "inception_score": (lambda folder: InceptionScore(Pixels(), splits=2), single(images())),
    "fid": (lambda folder: FID(reference(folder), Pixels()), single(images())),
    "kid": (lambda folder: KID(reference(folder), Pixels()), single(images())),
    "cmmd": (lambda folder: CMMD(reference(folder), Pixels()), single(images())),
    "geneval": (lambda folder: GenEvalAccuracy(GenEval("correct", "tiny")), single(images(), include=CLAUSES, tag=TAGS)),
    "dpg": (lambda folder: DPGBench(written(folder, "q.csv", CSV), BLIPVQA("tiny")), single(images(), file_name=[f"p{i // 3}" for i in range(N)])),
    "genai_bench": (lambda folder: GenAIBench(written(folder, "p.json", GENAI), written(folder, "s.json", SKILLS), CLIPScore("tiny")), single(images())),
    "t2i_compbench": (lambda folder: T2ICompBench("color", BLIPVQA("tiny")), single(images(), phrases=[["a red dog", "a cat"][: 1 + i % 2] for i in range(N)])),
    "t2i_compbench_numeracy": (lambda folder: T2ICompBench("numeracy", detector=OpenDetector("tiny", 0.0)), single(images(), objects=[["two dog", "a cat"]] * N)),
    "paintskills": (lambda folder: PaintSkills("object", "tiny"), single(images(), objects=[[{"shape": "dog"}]] * N)),
    "bias": (lambda folder: SocialBias(CLIPScore("tiny")), single(images())),
    "fractal": (lambda folder: FractalDimension(0.5), single(images())),
    "vpeval": (lambda folder: VPEval(written(folder, "v.json", json.dumps(PROGRAMS)), "tiny", "float32"), single(images(4), id=list(PROGRAMS))),
    "llm_score": (lambda folder: LLMScore(pretrained="tiny", dtype="float32"), single(images(2))),
    "frontier": (lambda folder: KLRewardFrontier(), [(torch.tensor([k + 0.5]), torch.tensor([0.1 * k - 0.02 * k * k])) for k in range(6)]),
    **{cls.__name__.lower(): (lambda folder, cls=cls: cls(), maps()) for cls in (NSS, KLD, SIM, CC, AUCJudd)},
    "style": (lambda folder: StyleSimilarity(reference(folder), Pixels()), single(images())),
}


def measure(metric, updates) -> dict[str, float]:
    for one in updates:
        metric.update(**one) if isinstance(one, dict) else metric.update(*one)
    return {name: float(value) for name, value in metric.compute().items()}


class Redness(Reward):
    """Red minus blue; `sign` -1 for the opposite taste."""

    differentiable = True

    def __init__(self, sign: float = 1.0):
        super().__init__()
        self.sign, self.name = sign, "red" if sign > 0 else "blue"

    def forward(self, images, prompts):
        return self.sign * (images[:, 0] - images[:, 2]).mean((1, 2))
