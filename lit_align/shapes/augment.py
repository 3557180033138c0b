"""Random changes of scenes, captions and images, from which comparisons are made."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.shapes.scenes import COLORS, RADII, RELATIONS, SHAPES, SIZE, Caption, Object, Spec, satisfies

MIRRORED = {"left of": "right of", "right of": "left of"}
CHANGES = ("color", "shape", "size", "odd size", "odd size", "place", "move", "binding", "number", "number")
ODD = ((4.5, 5.2), (8.3, 9.7), (13.3, 14.5))  # radii of no size: below, between and above RADII and their margin


def corrupt(scene: list[Object], caption: Caption, rng: random.Random) -> list[Object]:
    """A hard negative: the scene with one change after which it no longer satisfies the caption. The change is one of
    an object's colour, shape, size or place, the places or the colours of two objects, or the number of objects. A new
    size can be one that scenes do not have, which is most of what the base model gets wrong."""
    while True:
        new, i = list(scene), rng.randrange(len(scene))
        j, o = rng.randrange(len(scene)), scene[i]
        kind = rng.choice(CHANGES)
        if kind == "color":
            new[i] = o._replace(color=rng.choice(list(COLORS)))
        elif kind == "shape":
            new[i] = o._replace(shape=rng.choice(SHAPES))
        elif kind == "size":
            new[i] = o._replace(r=rng.uniform(*RADII["small" if o.size == "large" else "large"]))
        elif kind == "odd size":
            new[i] = o._replace(r=rng.uniform(*rng.choice(ODD)))
        elif kind == "move":
            new[i] = o._replace(x=rng.uniform(o.r, SIZE - o.r), y=rng.uniform(o.r, SIZE - o.r))
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


def describe(scene: list[Object], rng: random.Random) -> Caption | None:
    """A random caption of the grammar that the scene satisfies; None if the grammar has none."""
    n, shapes, colors = len(scene), {o.shape for o in scene}, {o.color for o in scene}
    if not 1 <= n <= 4 or None in shapes | colors | {o.size for o in scene}:
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


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, 3, H, W) after a 5 x 5 Gaussian blur with one standard deviation, in pixels, for each image (B,). It
    imitates what a VAE does to a rendered edge."""
    k = torch.arange(-2, 3)
    kernel = F.normalize(torch.exp(-k.square() / (2 * sigma[:, None].square())), p=1, dim=1)  # (B, 5)
    kernel, (b, c, h, w) = kernel.repeat_interleave(3, 0), images.shape
    x = F.pad(images, (2, 2, 2, 2), "replicate").view(1, b * c, h + 4, w + 4)
    x = F.conv2d(x, kernel[:, None, None, :], groups=b * c)
    return F.conv2d(x, kernel[:, None, :, None], groups=b * c).view(images.shape)
