"""Every metric with something to measure: what tests/metrics/test_processes.py runs in one process and in two.

CASES: name -> (make(folder), updates): `updates` is a list of the arguments of `update`, one image or judgement each.
"""

import torch
from parts import Darkness
from PIL import Image

from lit_align.metrics.accuracy import PairwiseAccuracy
from lit_align.metrics.diversity import PairwiseDistance, VendiScore
from lit_align.metrics.elo import Elo, EloCorrelation
from lit_align.metrics.features import Features
from lit_align.metrics.fid import FID
from lit_align.metrics.inception_score import InceptionScore
from lit_align.metrics.mean_reward import MeanReward
from lit_align.metrics.mmd import CMMD, KID
from lit_align.metrics.style import StyleSimilarity
from lit_align.metrics.win_rate import WinRate

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
    "style": (lambda folder: StyleSimilarity(reference(folder), Pixels()), single(images())),
}


def measure(metric, updates) -> dict[str, float]:
    for one in updates:
        metric.update(**one) if isinstance(one, dict) else metric.update(*one)
    return {name: float(value) for name, value in metric.compute().items()}
