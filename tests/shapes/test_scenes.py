import json
import math
import random
from pathlib import Path

import pytest

from lit_align.shapes.scenes import (
    GAP,
    RADII,
    SKILLS,
    Caption,
    Object,
    Spec,
    is_held_out,
    nearest,
    parse,
    prompts,
    random_caption,
    random_scene,
    satisfies,
)

ROOT = Path(__file__).parents[2]


def scenes(n, seed=0, skill=None):
    rng = random.Random(seed)
    for _ in range(n):
        caption = random_caption(skill or rng.choice(SKILLS), rng)
        yield caption, random_scene(caption, rng)


def test_every_caption_parses_back_to_itself():
    for caption, _ in scenes(2000):
        assert parse(str(caption)) == caption


@pytest.mark.parametrize("text", ["a red dog", "red circle", "two red circle left of a square", "", "a circle near a square"])
def test_other_text_is_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match="not a Shapes caption"):
        parse(text)


def test_scenes_satisfy_their_caption_and_keep_apart():
    for caption, scene in scenes(2000):
        assert satisfies(scene, caption)
        for i, a in enumerate(scene):
            assert a.r <= a.x <= 64 - a.r and a.r <= a.y <= 64 - a.r
            assert RADII[a.size][0] <= a.r <= RADII[a.size][1]
            assert all(max(abs(a.x - b.x), abs(a.y - b.y)) > a.r + b.r + GAP for b in scene[:i])


def test_a_relation_is_as_clear_as_in_scenes():
    square, circle = Object("blue", "square", 32, 32, 7), "a circle {} a square"
    at = lambda x, y: [Object("red", "circle", x, y, 7), square]
    holds = lambda relation, x, y, *least: satisfies(at(x, y), parse(circle.format(relation)), *least)
    assert holds("left of", 10, 32) and not holds("right of", 10, 32) and not holds("above", 10, 32)
    assert holds("above", 32, 10) and holds("below", 32, 54)
    assert not holds("left of", 12, 12) and not holds("above", 12, 12)  # on the diagonal neither holds
    assert holds("left of", 12, 12, 0.5) and holds("above", 12, 12, 0.5)  # by GenEval's rule both
    assert not holds("above", 10, 22, 0.5)  # sin(24 degrees) < 0.5
    assert holds("left of", 12, 32 - 20 * math.tan(math.acos(0.80))) and not holds("left of", 12, 32 - 20 * math.tan(math.acos(0.78)))


@pytest.mark.parametrize("r,size", [(5.4, None), (5.6, "small"), (7.9, "small"), (8.1, None), (9.9, None), (10.1, "large"), (12.9, "large"), (13.1, None)])
def test_what_lies_between_two_sizes_has_no_size_and_is_wrong(r, size):
    o = Object("red", "circle", 32, 32, r)
    assert o.size == size
    for said in (None, *RADII):
        assert satisfies([o], Caption((Spec(said, None, "circle"),))) == (size is not None and said in (None, size))


def test_the_nearest_object_of_the_world():
    radius = lambda r: nearest(Object("red", "circle", 32, 32, r)).r
    assert [radius(r) for r in (2, 7, 8.9, 9.1, 11, 20)] == [6, 7, 7.5, 10.5, 11, 12.5]


def test_an_object_without_a_colour_is_wrong_even_if_none_is_asked_for():
    o = Object("red", "circle", 32, 32, 7)
    assert satisfies([o], parse("a circle")) and not satisfies([o._replace(color=None)], parse("a circle"))


@pytest.mark.parametrize("spoil", ["missing", "extra", "color", "shape", "unknown"])
def test_a_scene_that_differs_in_one_thing_is_rejected(spoil):
    for caption, scene in scenes(200, skill="color_attr"):
        o = scene[0]
        changed = {
            "missing": scene[1:],
            "extra": [*scene, Object("white", "cross", 5, 5, 6)],
            "color": [o._replace(color=next(c for c in ("red", "green", "blue") if c not in (o.color, scene[1].color))), scene[1]],
            "shape": [o._replace(shape=next(s for s in ("circle", "cross", "square") if s not in (o.shape, scene[1].shape))), scene[1]],
            "unknown": [o._replace(shape=None), scene[1]],
        }[spoil]
        assert not satisfies(changed, caption)


def test_swapped_attributes_are_rejected():
    scene = [Object("red", "square", 16, 32, 7), Object("blue", "circle", 48, 32, 7)]
    assert satisfies(scene, parse("a blue circle and a red square"))
    assert not satisfies(scene, parse("a red circle and a blue square"))


def test_held_out_prompts_never_meet_training_prompts():
    held, train = prompts(600, held_out=True), prompts(600, held_out=False)
    assert all(is_held_out(r["prompt"]) for r in held) and not any(is_held_out(r["prompt"]) for r in train)
    assert {r["skill"] for r in held} == set(SKILLS)


@pytest.mark.parametrize("name,n,seed", [("val", 128, 1), ("test", 1000, 2)])
def test_the_prompt_files_are_what_the_function_draws(name, n, seed):
    lines = (ROOT / f"configs/shapes/prompts/{name}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == prompts(n, held_out=True, seed=seed)
