"""Pairs of Shapes images that annotators have compared, as many as are asked for: what a reward is learnt from."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.tables import read_table
from lit_align.shapes.annotators import Annotator, matched, qualities
from lit_align.shapes.data import draw
from lit_align.shapes.judge import see
from lit_align.shapes.render import render
from lit_align.shapes.scenes import (
    COLORS,
    RADII,
    RELATIONS,
    SHAPES,
    SIZE,
    Caption,
    Object,
    Spec,
    is_held_out,
    parse,
    satisfies,
)

MIRRORED = {"left of": "right of", "right of": "left of"}


def spoiled(scene: list[Object], caption: Caption, rng: random.Random) -> list[Object]:
    """The scene with one thing changed, so that it does not satisfy the caption: an object's colour, shape, size or
    place, two objects' colours, or their number."""
    while True:
        new, i = list(scene), rng.randrange(len(scene))
        j, o = rng.randrange(len(scene)), scene[i]
        kind = rng.choice(("color", "shape", "size", "place", "binding", "number", "number"))
        if kind == "color":
            new[i] = o._replace(color=rng.choice(list(COLORS)))
        elif kind == "shape":
            new[i] = o._replace(shape=rng.choice(SHAPES))
        elif kind == "size":
            new[i] = o._replace(r=rng.uniform(*RADII["small" if o.size == "large" else "large"]))
        elif kind == "place":
            new[i], new[j] = o._replace(x=scene[j].x, y=scene[j].y), scene[j]._replace(x=o.x, y=o.y)
        elif kind == "binding":
            new[i], new[j] = o._replace(color=scene[j].color), scene[j]._replace(color=o.color)
        elif rng.random() < 0.5:
            del new[i]
        else:
            r = rng.uniform(*RADII["small"])
            new.append(o._replace(x=rng.uniform(r, SIZE - r), y=rng.uniform(r, SIZE - r), r=r))
        if not satisfies(new, caption):
            return new


def described(scene: list[Object], rng: random.Random) -> Caption | None:
    """A caption of the grammar that a scene satisfies; None where there is none."""
    n, shapes, colors = len(scene), {o.shape for o in scene}, {o.color for o in scene}
    if not 1 <= n <= 4 or None in shapes | colors:
        return None
    size = lambda o: rng.choice((None, o.size))
    if n > 1 and len(shapes) == 1:
        return Caption(
            (Spec(None, colors.pop() if len(colors) == 1 and rng.random() < 0.5 else None, shapes.pop()),) * n
        )
    if n == 1:
        return Caption((Spec(size(scene[0]), rng.choice((None, scene[0].color)), scene[0].shape),))
    if n > 2:
        return None
    a, b = rng.sample(scene, 2)
    if len(colors) < 2 or rng.random() < 0.3:
        return Caption((Spec(size(a), None, a.shape), Spec(size(b), None, b.shape)))
    pair = (Spec(None, a.color, a.shape), Spec(None, b.color, b.shape))
    relations = [r for r in RELATIONS if satisfies(scene, Caption(pair, r))]
    return Caption(pair, rng.choice([None, *relations]))


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, 3, H, W) after a Gaussian blur of each one's own standard deviation (B,), in pixels: a cheap stand-in
    for what a VAE does to a rendered edge."""
    k = torch.arange(-2, 3)
    kernel = F.normalize(torch.exp(-k.square() / (2 * sigma[:, None].square())), p=1, dim=1)  # (B, 5)
    kernel, (b, c, h, w) = kernel.repeat_interleave(3, 0), images.shape
    x = F.pad(images, (2, 2, 2, 2), "replicate").view(1, b * c, h + 4, w + 4)
    x = F.conv2d(x, kernel[:, None, None, :], groups=b * c)
    return F.conv2d(x, kernel[:, None, :, None], groups=b * c).view(images.shape)


class Comparisons(AlignData):
    """Compared images of the Shapes world: batches {"win", "lose", "prompt", "index"}; ties are not shown.

    A row is drawn from its number. It is one of three: a rendered scene, blurred as a decoder would, against the same
    with one thing changed; two samples of a policy for one prompt; or two samples of it for any prompts, and a caption
    that describes one of them. An annotator says which is preferred; half of the rows are mirrored. Validation pairs
    are samples of the policy for prompts that are held out, one that the exact judge calls right against one that it
    calls wrong. No caption is one of the test set's.

    Args:
        lists: samples that `lit_align.shapes.lists` wrote.
        n: rows in an epoch.
        held_out: prompts, the last of the lists, whose samples are shown in validation alone.
        shares: of rendered scenes, of samples for one prompt, and of samples for any.
        controlled: share of captions with a control word, which says that the caption is meant (good) or that the
            opposite is (bad).
        weights: what the annotator cares about: quality -> weight (default: whether the image is right, and half as
            much what share of its objects is).
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
        self.samples: Tensor | None = None  # (N, 3, 64, 64) uint8, of the lists, K in a row
        self.scenes: list[list[Object]] = []  # what the judge sees in each
        self.prompt_of: list[str] = []

    def load(self, split: str):
        from datasets import Dataset

        if self.samples is None:
            self.read()
        if split == "train":
            return Dataset.from_dict({"index": list(range(self.n))})
        return Dataset.from_list(list(self._held_out_pairs()))

    def read(self) -> None:
        """Keeps the samples in memory, and what the judge sees in them."""
        rows = read_table(self.lists)
        rows = rows.select(range(16)) if self.smoke else rows
        self.k, images = len(rows[0]["images"]), []
        for i, row in enumerate(rows):
            images += [decode(cell, SIZE, f"row {i} of {self.lists}") for cell in row["images"]]
            self.prompt_of += [row["prompt"]] * self.k
        images = torch.stack(images)
        self.scenes = [scene for part in images.split(256) for scene in see(part)]
        self.samples = (images * 255).round().byte()
        self.seen = len(images) - self.k * min(self.held_out, len(rows) // 2)  # samples that training may show

    def _held_out_pairs(self):
        right = [satisfies(scene, parse(text)) for scene, text in zip(self.scenes, self.prompt_of)]
        for first in range(self.seen, len(right), self.k):
            mine = range(first, first + self.k)
            yield from (
                {"prompt": self.prompt_of[a], "a": a, "b": b} for a in mine for b in mine if right[a] > right[b]
            )

    def _candidates(self, kind: int, rng: random.Random) -> tuple[Caption | None, list]:
        """A caption and two images for it, each a scene to render or a sample's number."""
        if kind == 0:
            caption, scene = draw(self.seed, rng.randrange(2**60))
            return caption, [scene, spoiled(scene, caption, rng)]
        a = rng.randrange(self.seen)
        if kind == 1:
            return parse(self.prompt_of[a]), [a, a - a % self.k + rng.randrange(self.k)]
        caption = described(self.scenes[a], rng)
        if caption is None:
            return None, []
        others = [b for b in (rng.randrange(self.seen) for _ in range(8)) if not satisfies(self.scenes[b], caption)]
        return caption, [a, max(others, key=lambda b: matched(self.scenes[b], caption), default=a)]  # nearly right

    def _compared(self, index: int) -> tuple[str, list, bool]:
        """A row: its caption, the preferred and the other image, and whether both are to be mirrored."""
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
        """Images (2B, 3, H, W) of scenes and sample numbers."""
        drawn = [i for i, x in enumerate(cells) if not isinstance(x, int)]
        images = self.samples[[x if isinstance(x, int) else 0 for x in cells]].float() / 255
        if drawn:
            sigma = 0.3 + 0.7 * torch.rand(len(drawn), generator=torch.Generator().manual_seed(seed))
            images[drawn] = blurred(render([cells[i] for i in drawn]), sigma)
        if self.resolution != SIZE:
            images = F.interpolate(images, self.resolution, mode="bilinear", antialias=True).clamp(0, 1)
        return images
