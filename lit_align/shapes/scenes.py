"""The Shapes world: scenes, captions that describe them, and random ones of both.

A caption tests one of GenEval's six skills (arXiv 2310.11513): single_object, colors, two_object, counting, position,
color_attr. It names all objects of a scene: an image satisfies it if it shows these objects and no others.
"""

import hashlib
import random
import re
from itertools import permutations
from typing import NamedTuple

SIZE = 64  # image height and width, pixels
COLORS = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.85, 0.20),
    "blue": (0.20, 0.35, 1.00),
    "yellow": (1.00, 0.90, 0.15),
    "purple": (0.80, 0.25, 0.95),
    "cyan": (0.10, 0.90, 0.95),
    "white": (1.00, 1.00, 1.00),
}
SHAPES = ("circle", "square", "triangle", "cross")
RADII = {"small": (6.0, 7.5), "large": (10.5, 12.5)}  # half the side of the bounding box, pixels
MARGIN = 0.5  # pixels; an object has a size if its r is at most this far outside the size's radii
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NUMBERS = {"two": 2, "three": 3, "four": 4}
SKILLS = ("single_object", "colors", "two_object", "counting", "position", "color_attr")
CLEAR = 0.8  # least component along a relation's axis of the unit vector between two centres, in scenes
LEAST = CLEAR - 0.01  # the same, in what the judge accepts
GAP = 4.0  # least distance between two bounding boxes, pixels


class Object(NamedTuple):
    """One object of a scene. In what the judge reads from an image, colour or shape may be None: none of ours."""

    color: str | None
    shape: str | None
    x: float  # centre of the bounding box, pixels from the left
    y: float  # pixels from the top
    r: float  # half the side of the bounding box

    @property
    def size(self) -> str | None:
        """None for an r that scenes do not have: between the two sizes, or outside both."""
        return next((name for name, (low, high) in RADII.items() if low - MARGIN <= self.r <= high + MARGIN), None)


class Spec(NamedTuple):
    """What a caption says about one object; None: nothing."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    def fits(self, o: Object) -> bool:
        """Whether the object is what the caption says. An object without a size, colour or shape of ours never is,
        even if the caption names none: scenes have no such objects."""
        return all(got and want in (None, got) for want, got in zip(self, (o.size, o.color, o.shape)))

    def __str__(self):
        return " ".join(filter(None, self))


class Caption(NamedTuple):
    """A parsed caption: its objects and, for two objects, the position of the first relative to the second."""

    objects: tuple[Spec, ...]
    relation: str | None = None

    def __str__(self):
        first, n = self.objects[0], len(self.objects)
        if n > 1 and len(set(self.objects)) == 1 and not self.relation:
            number = next(word for word, value in NUMBERS.items() if value == n)
            return f"{number} {first}{'es' if first.shape == 'cross' else 's'}"
        return f" {self.relation or 'and'} ".join(f"a {spec}" for spec in self.objects)


_WORDS = rf"(?:({'|'.join(RADII)}) )?(?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})"
_ONE = re.compile(rf"a {_WORDS}")
_MANY = re.compile(rf"({'|'.join(NUMBERS)}) {_WORDS}e?s")
_TWO = re.compile(rf"(a .+?) (and|{'|'.join(RELATIONS)}) (a .+)")


def parse(text: str) -> Caption:
    """Parses a caption such as "a red circle left of a small square". Raises ValueError for any other text."""
    if m := _ONE.fullmatch(text):
        return Caption((Spec(*m.groups()),))
    if m := _MANY.fullmatch(text):
        return Caption((Spec(*m.groups()[1:]),) * NUMBERS[m[1]])
    if (m := _TWO.fullmatch(text)) and (a := _ONE.fullmatch(m[1])) and (b := _ONE.fullmatch(m[3])):
        return Caption((Spec(*a.groups()), Spec(*b.groups())), m[2] if m[2] in RELATIONS else None)
    raise ValueError(f"{text!r} is not a Shapes caption; one reads like 'a red circle left of a small square'.")


def direction(a: Object, b: Object) -> tuple[float, float]:
    """Unit vector from b to a; zero if they coincide."""
    dx, dy = a.x - b.x, a.y - b.y
    length = (dx * dx + dy * dy) ** 0.5 or 1.0
    return dx / length, dy / length


def satisfies(objects: list[Object], caption: Caption, least: float = LEAST) -> bool:
    """Whether a scene shows exactly the caption's objects, in the caption's relation.

    A relation holds if the unit vector between the two centres has a component above `least` along the relation's
    axis. GenEval's rule is the same with 0.5, at which "left of" and "above" can both hold for one pair; here at most
    one relation holds.
    """
    if len(objects) != len(caption.objects):
        return False
    for order in permutations(objects):
        if not all(spec.fits(o) for spec, o in zip(caption.objects, order)):
            continue
        if caption.relation is None:
            return True
        (dx, dy), (ax, ay) = direction(order[0], order[1]), RELATIONS[caption.relation]
        if dx * ax + dy * ay > least:
            return True
    return False


def nearest(o: Object) -> Object:
    """The object with its r moved to the closest r that scenes have."""
    inside = (min(max(o.r, low), high) for low, high in RADII.values())
    return o._replace(r=min(inside, key=lambda r: abs(r - o.r)))


def random_caption(skill: str, rng: random.Random) -> Caption:
    """A random caption of one skill; each choice of the grammar is uniform."""
    color, shape = (lambda: rng.choice(list(COLORS))), (lambda: rng.choice(SHAPES))
    size = lambda: rng.choice((None, None, *RADII))
    if skill == "single_object":
        return Caption((Spec(size(), None, shape()),))
    if skill == "colors":
        return Caption((Spec(size(), color(), shape()),))
    if skill == "counting":
        return Caption((Spec(None, rng.choice((None, color())), shape()),) * rng.choice(list(NUMBERS.values())))
    if skill == "two_object":
        a, b = rng.sample(SHAPES, 2)
        return Caption((Spec(size(), None, a), Spec(size(), None, b)))
    (c, d), (a, b) = rng.sample(list(COLORS), 2), rng.sample(SHAPES, 2)
    pair = (Spec(None, c, a), Spec(None, d, b))
    return Caption(pair, rng.choice(list(RELATIONS)) if skill == "position" else None)


def is_held_out(text: str) -> bool:
    """Whether a caption belongs to the held-out fifth, which no preference pair and no training prompt uses."""
    return hashlib.sha256(text.encode()).digest()[0] % 5 == 0


def prompts(n: int, held_out: bool, seed: int = 0) -> list[dict]:
    """n prompts as rows {"prompt", "skill"}, the skills in turn, all held out or none. A prompt is repeated only if its
    skill has too few captions."""
    rng, rows, seen = random.Random(f"prompts-{seed}-{held_out}"), [], set()
    while len(rows) < n:
        skill, text = SKILLS[len(rows) % len(SKILLS)], ""
        for attempt in range(200):
            text = str(random_caption(skill, rng))
            if is_held_out(text) == held_out and (text not in seen or attempt > 100):
                break
        seen.add(text)
        rows.append({"prompt": text, "skill": skill})
    return rows


def random_scene(caption: Caption, rng: random.Random) -> list[Object]:
    """A random scene that satisfies the caption, with bounding boxes at least `GAP` apart."""
    while True:
        scene = []
        for spec in caption.objects:
            crowded = len(caption.objects) > 2
            size = spec.size or ("small" if crowded else rng.choice(list(RADII)))
            r = rng.uniform(*RADII[size])
            x, y = (rng.uniform(r + 1, SIZE - 1 - r) for _ in range(2))
            scene.append(Object(spec.color or rng.choice(list(COLORS)), spec.shape, x, y, r))
        apart = all(
            max(abs(a.x - b.x), abs(a.y - b.y)) > a.r + b.r + GAP for i, a in enumerate(scene) for b in scene[:i]
        )
        if apart and clear(scene, caption.relation):
            return scene


def clear(scene: list[Object], relation: str | None) -> bool:
    """Whether the relation is as clear as in all scenes: a component above `CLEAR`."""
    if relation is None:
        return True
    (dx, dy), (ax, ay) = direction(scene[0], scene[1]), RELATIONS[relation]
    return dx * ax + dy * ay > CLEAR
