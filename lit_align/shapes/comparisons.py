"""Compared pairs of Shapes images, generated without end: the data that a reward model is trained on."""

import random

import torch
from torch import Tensor

from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.tables import read_table
from lit_align.shapes.annotators import Annotator, matched, qualities
from lit_align.shapes.augment import MIRRORED, blur, corrupt, describe
from lit_align.shapes.data import draw
from lit_align.shapes.judge import see
from lit_align.shapes.render import render, resize
from lit_align.shapes.scenes import SIZE, Caption, Object, is_held_out, parse, satisfies


class Comparisons(AlignData):
    """Preference pairs to train a reward of Shapes images on: batches {"win", "lose", "prompt", "index"}.

    A training row is generated from its number and the seed. It is one of three kinds: (1) a rendered scene against
    the same scene with one change (`corrupt`), both blurred; (2) two samples of a policy for one prompt; (3) two
    samples of the policy for any prompts, with a caption that describes one of them. A simulated annotator picks the
    winner; ties are skipped; half of the rows are mirrored left to right. A validation row is two samples for one of
    the held-out prompts, one that the exact judge calls right and one that it calls wrong. No caption is a test
    prompt.

    Args:
        lists: samples of the policy, a file that `python -m lit_align.shapes.make.lists` wrote.
        n: training rows in an epoch.
        held_out: number of prompts, the last ones of `lists`, whose samples only validation shows.
        shares: probabilities of the three kinds of rows.
        controlled: share of captions with a control word before them: "good" leaves the preference as it is, "bad"
            exchanges winner and loser.
        weights: the annotator's utility, quality -> weight. Default: 1 for a right image, 0.5 for the share of its
            objects that are right.
    """

    image_keys = ("win", "lose")

    def __init__(
        self,
        lists: str = "checkpoints/shapes-sd/lists/train.parquet",
        n: int = 100_000,
        held_out: int = 200,
        shares: tuple[float, float, float] = (0.25, 0.4, 0.35),
        controlled: float = 0.1,
        weights: dict[str, float] | None = None,
        resolution: int | None = SIZE,
        **kwargs,
    ):
        super().__init__(resolution=resolution, **kwargs)
        self.lists, self.n, self.held_out, self.shares, self.controlled = lists, n, held_out, shares, controlled
        self.annotator = Annotator(weights or {"correct": 1.0, "partial": 0.5})
        self.samples: Tensor | None = None  # (N, 3, 64, 64) uint8; the K samples of a prompt are neighbours
        self.scenes: list[list[Object]] = []  # what the judge sees in each sample
        self.prompt_of: list[str] = []

    def load(self, split: str):
        from datasets import Dataset

        if self.samples is None:
            self.read()
        if split == "train":
            return Dataset.from_dict({"index": list(range(self.n))})
        return Dataset.from_list(list(self._held_out_pairs()))

    def read(self) -> None:
        """Loads the samples into memory and reads them with the judge."""
        rows = read_table(self.lists)
        rows = rows.select(range(16)) if self.smoke else rows
        self.k, images = len(rows[0]["images"]), []
        for i, row in enumerate(rows):
            images += [decode(cell, SIZE, f"row {i} of {self.lists}") for cell in row["images"]]
            self.prompt_of += [row["prompt"]] * self.k
        images = torch.stack(images)
        self.scenes = [scene for part in images.split(256) for scene in see(part)]
        self.samples = (images * 255).round().byte()
        self.seen = len(images) - self.k * min(self.held_out, len(rows) // 2)  # samples shown in training

    def _held_out_pairs(self):
        right = [satisfies(scene, parse(text)) for scene, text in zip(self.scenes, self.prompt_of)]
        for first in range(self.seen, len(right), self.k):
            mine = range(first, first + self.k)
            yield from (
                {"prompt": self.prompt_of[a], "a": a, "b": b} for a in mine for b in mine if right[a] > right[b]
            )

    def _candidates(self, kind: int, rng: random.Random) -> tuple[Caption | None, list]:
        """A caption and two images to compare for it, each a scene to render or the number of a sample. `kind` 0, 1, 2
        as in the class docstring; None if the sample cannot be described."""
        if kind == 0:
            caption, scene = draw(self.seed, rng.randrange(2**60))
            return caption, [scene, corrupt(scene, caption, rng)]
        a = rng.randrange(self.seen)
        if kind == 1:
            return parse(self.prompt_of[a]), [a, a - a % self.k + rng.randrange(self.k)]
        caption = describe(self.scenes[a], rng)
        if caption is None:
            return None, []
        others = [b for b in (rng.randrange(self.seen) for _ in range(8)) if not satisfies(self.scenes[b], caption)]
        return caption, [a, max(others, key=lambda b: matched(self.scenes[b], caption), default=a)]  # nearly right

    def _compared(self, index: int) -> tuple[str, list, bool]:
        """A training row: its caption, its images (winner first), and whether both images are mirrored."""
        rng = random.Random(f"{self.seed}-{index}")
        while True:
            caption, pair = self._candidates(rng.choices((0, 1, 2), self.shares)[0], rng)
            if caption is None:
                continue
            scenes = [self.scenes[x] if isinstance(x, int) else x for x in pair]
            worth = self.annotator.utility([qualities(scene, str(caption)) for scene in scenes])
            label, mirror = self.annotator.prefer(*worth.split(1)).item(), rng.random() < 0.5
            if mirror:
                caption = caption._replace(relation=MIRRORED.get(caption.relation, caption.relation))
            if label == 0.5 or is_held_out(text := str(caption)):
                continue
            pair = pair if label else pair[::-1]
            if rng.random() >= self.controlled:
                return text, pair, mirror
            return (f"good. {text}", pair, mirror) if rng.random() < 0.5 else (f"bad. {text}", pair[::-1], mirror)

    def collate(self, rows: list[dict]) -> dict:
        shown = lambda row: (row["prompt"], [row["a"], row["b"]], False)
        found = [shown(row) if "prompt" in row else self._compared(row["index"]) for row in rows]
        images = self._images([x for _, pair, _ in found for x in pair], rows[0]["index"]).unflatten(0, (-1, 2))
        mirror = torch.tensor([mirror for _, _, mirror in found]).view(-1, 1, 1, 1, 1)
        win, lose = torch.where(mirror, images.flip(-1), images).unbind(1)
        text = [text for text, _, _ in found]
        return {"win": win, "lose": lose, "prompt": text, "index": [row["index"] for row in rows]}

    def _images(self, cells: list, seed: int) -> Tensor:
        """Images (2B, 3, H, W) of cells, each a scene to render or the number of a sample."""
        drawn = [i for i, x in enumerate(cells) if not isinstance(x, int)]
        images = self.samples[[x if isinstance(x, int) else 0 for x in cells]].float() / 255
        if drawn:
            sigma = 0.3 + 0.7 * torch.rand(len(drawn), generator=torch.Generator().manual_seed(seed))
            images[drawn] = blur(render([cells[i] for i in drawn]), sigma)
        return resize(images, self.resolution)
