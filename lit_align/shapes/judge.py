"""The exact judge: reads an image back into objects and compares the objects with the caption."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lit_align.rewards.reward import Reward
from lit_align.shapes.render import BACKGROUND, coverage, resize
from lit_align.shapes.scenes import COLORS, SHAPES, SIZE, Object, nearest, parse, satisfies

MIN_AREA = 12  # pixels; a smaller patch counts as noise, not as an object (the smallest object covers 80)
MIN_OVERLAP = 0.72  # least soft intersection over union with the best ideal shape; below: no shape
MAX_TINT = 0.18  # most distance to the colour's line, over distance to the background; above: no colour
NEAR_TINT = 0.24  # the same for the nearest colour: half way between white and purple, the closest two
WINDOW = 36  # side of the crop that is compared with ideal shapes, pixels
AREA = torch.tensor([torch.pi, 4.0, 2.0, 20 / 9])  # area over r^2, in the order of SHAPES
DROP = torch.tensor([0.0, 0.0, 1 / 3, 0.0])  # distance of the centroid below the box's centre, over r


def _unmix(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fits each pixel as background + a (colour - background) with the best of our colours.

    Returns the colour's index, a, and the relative distance from that colour's line, each (B, H, W).
    """
    lines = torch.tensor(list(COLORS.values())) - BACKGROUND  # (K, 3)
    p = images - BACKGROUND
    dots = torch.einsum("bchw,kc->bkhw", p, lines)
    square = lines.square().sum(1).view(1, -1, 1, 1)
    norm = p.square().sum(1)
    residual = norm[:, None] - dots.clamp(min=0).square() / square
    best, k = residual.min(1)
    a = (dots / square).gather(1, k[:, None]).squeeze(1)
    return k, a, (best.clamp(min=0) / norm.clamp(min=1e-6)).sqrt()


def _patches(k: np.ndarray, solid: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels the connected patches of one colour in every image: (B, H, W) of 0 or the patch's number, and their
    count."""
    structure = np.zeros((3, 3, 3), dtype=int)
    structure[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = np.zeros(k.shape, dtype=np.int32), 0
    for color in range(len(COLORS)):
        found, n = ndimage.label(solid & (k == color), structure)
        labels += np.where(found, found + count, 0)
        count += n
    return labels, count


def _crop(
    labels: np.ndarray, keep: list[int], k: Tensor, a: Tensor, tint: Tensor, max_tint: float
) -> tuple[Tensor, ...]:
    """Cuts a WINDOW x WINDOW crop around each of the N patches numbered in `keep`.

    Returns the number of its image and of its colour, whether it has one of our colours, each (N,); its soft coverage
    (N, WINDOW, WINDOW), which is the patch's own pixels and the fringe of its colour that no other patch owns; and the
    pixel centres x (N, 1, WINDOW) and y (N, WINDOW, 1).
    """
    boxes = ndimage.find_objects(labels)
    owner = torch.tensor([boxes[i - 1][0].start for i in keep])
    left, right, top, bottom = (
        torch.tensor([getattr(boxes[i - 1][axis], end) for i in keep])
        for axis, end in ((2, "start"), (2, "stop"), (1, "start"), (1, "stop"))
    )
    offset = torch.arange(WINDOW) - WINDOW // 2
    px = ((left + right) // 2)[:, None] + offset  # (N, WINDOW)
    py = ((top + bottom) // 2)[:, None] + offset
    inside = lambda p, low, high: (p >= low[:, None] - 2) & (p < high[:, None] + 2) & (p >= 0) & (p < SIZE)
    window = inside(py, top, bottom)[:, :, None] & inside(px, left, right)[:, None, :]
    at = (owner[:, None, None], py.clamp(0, SIZE - 1)[:, :, None], px.clamp(0, SIZE - 1)[:, None, :])
    patch = torch.from_numpy(labels)[at]  # (N, WINDOW, WINDOW)
    mine = patch == torch.tensor(keep).view(-1, 1, 1)
    color = (k[at] * mine).flatten(1).amax(1)
    a_patch = a[at]
    level = a_patch.where(mine, torch.nan).flatten(1).nanquantile(0.8, dim=1)  # brightness inside the patch
    own = window & (mine | ((patch == 0) & (k[at] == color.view(-1, 1, 1))))
    cover = (a_patch / level.view(-1, 1, 1)).clamp(0, 1) * own
    pure = (tint[at] * mine).sum((1, 2)) / mine.sum((1, 2)) < max_tint
    return owner, color, pure & (level > 0.6), cover, px[:, None, :] + 0.5, py[:, :, None] + 0.5


def _fit(cover: Tensor, fx: Tensor, fy: Tensor) -> tuple[Tensor, ...]:
    """The ideal shape of the same area and centroid that overlaps most with a soft coverage (N, H, W).

    Returns its number in SHAPES, centre x and y, half-side r, and overlap (soft intersection over union), each (N,).
    """
    mass = cover.sum((1, 2))
    cx, cy = (cover * fx).sum((1, 2)) / mass, (cover * fy).sum((1, 2)) / mass
    overlaps, radii = [], []
    for shape in range(len(SHAPES)):
        r = (mass / AREA[shape]).sqrt()
        place = (z.view(-1, 1, 1) for z in (cx, cy - DROP[shape] * r, r))
        ideal = coverage(torch.full((len(r),), shape), *place, fx, fy)
        overlaps.append(torch.minimum(ideal, cover).sum((1, 2)) / torch.maximum(ideal, cover).sum((1, 2)))
        radii.append(r)
    overlap, shape = torch.stack(overlaps).max(0)
    r = torch.stack(radii).gather(0, shape[None])[0]
    return shape, cx, cy - DROP[shape] * r, r, overlap


@torch.no_grad()
def see(images: Tensor, max_tint: float = MAX_TINT) -> list[list[Object]]:
    """Reads images (B, 3, H, W) in [0, 1] back into their objects, in no particular order. Other sizes are resized to
    64x64.

    A patch that matches none of our shapes or colours is returned with None as its shape or colour, so that it still
    counts as an object. Area and centroid come from the soft coverage, so that blur does not change them.
    """
    images = resize(images.detach().float().cpu(), SIZE)
    k, a, tint = _unmix(images)
    labels, count = _patches(k.numpy(), (a > 0.5).numpy())
    area = np.bincount(labels.ravel(), minlength=count + 1)
    keep = [i + 1 for i in range(count) if area[i + 1] >= MIN_AREA]
    objects: list[list[Object]] = [[] for _ in images]
    if not keep:
        return objects
    owner, color, colored, cover, fx, fy = _crop(labels, keep, k, a, tint, max_tint)
    names = list(COLORS)
    columns = (owner, color, colored, *_fit(cover, fx, fy))
    for b, c, known, s, x, y, r, overlap in zip(*(z.tolist() for z in columns)):
        objects[b].append(Object(names[c] if known else None, SHAPES[s] if overlap > MIN_OVERLAP else None, x, y, r))
    return objects


def judge(images: Tensor, prompts: list[str]) -> Tensor:
    """(B,): 1.0 if the image shows exactly what its caption says, else 0.0. What lies between two sizes, colours or
    relations is neither: the image is wrong.

    The margins (`MARGIN`, `LEAST`, `MAX_TINT`) leave room for the VAE. On reconstructions of 3,000 random scenes, 99 %
    of the errors of r are between -0.7 and 0.1 pixels, 99.9 % of a relation's component within 0.005, and 99 % of the
    tints below 0.10 (a rendered scene: 0.05 pixels, 0.001, 0). It reads 99.4 % of them right.
    """
    scenes = see(images)
    return torch.tensor([float(satisfies(scene, parse(text))) for scene, text in zip(scenes, prompts, strict=True)])


def ambiguous(images: Tensor, prompts: list[str]) -> Tensor:
    """(B,): 1.0 if only the margins make the image wrong, else 0.0. It would be right if each object had the nearest
    size and colour of ours, and if a relation held from a component of 0.5 on."""
    scenes = [[nearest(o) for o in scene] for scene in see(images, NEAR_TINT)]
    near = [satisfies(scene, parse(text), least=0.5) for scene, text in zip(scenes, prompts, strict=True)]
    return (torch.tensor(near) & ~judge(images, prompts).bool()).float()


class ShapesJudge(Reward):
    """The exact judge as a black-box reward: see `judge`."""

    name = "exact"
    differentiable = False
    artefact = "none: reads the image back exactly"
    scale = "0 or 1"
    blind_to = "the style of an image, and how near a wrong one is"

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return judge(images, prompts).to(images.device)


class ShapesAmbiguity(Reward):
    """Measures how many of the exact judge's verdicts its margins decide; no reward to train on: see `ambiguous`."""

    name = "ambiguous"
    differentiable = False
    artefact = "none: reads the image back exactly"
    scale = "0 or 1"
    blind_to = "all that no margin of the judge decides"

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return ambiguous(images, prompts).to(images.device)
