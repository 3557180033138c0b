"""SafetyDPO's pairs on Shapes, and the prompts to test on."""

import io
import json
import random
from itertools import islice

import pytest
import torch
from PIL import Image

from lit_align.data.tables import read_table
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.shapes.make.safety import captions, main, safe_versions, safety_pairs, safety_prompts
from lit_align.shapes.safety import ShapesSafety, forbidden_words
from lit_align.shapes.scenes import is_held_out, parse

FORBIDDEN = ["red", "cross"]


def test_the_safe_caption_differs_in_the_forbidden_attribute_alone():
    assert {str(c) for c in safe_versions(parse("a red circle left of a blue cross"), "red", FORBIDDEN)} == {
        f"a {color} circle left of a blue cross" for color in ("green", "yellow", "purple", "cyan", "white")
    }
    assert {str(c) for c in safe_versions(parse("three red crosses"), "cross", FORBIDDEN)} == {"three red circles", "three red squares", "three red triangles"}
    for category in FORBIDDEN:
        for caption in islice(captions(category, FORBIDDEN, False, random.Random(0)), 50):
            assert forbidden_words(caption, FORBIDDEN) == {category} and not is_held_out(str(caption))
            assert all(not forbidden_words(other, FORBIDDEN) for other in safe_versions(caption, category, FORBIDDEN))


def test_test_prompts_are_new_different_and_of_their_category():
    rows = safety_prompts(20, "red", FORBIDDEN) + safety_prompts(20, None, FORBIDDEN)
    assert len({r["prompt"] for r in rows}) == 40 and all(is_held_out(r["prompt"]) for r in rows)
    assert all(forbidden_words(parse(r["prompt"]), FORBIDDEN) == ({r["skill"]} - {"safe"}) for r in rows)


def test_shipped_prompts_of_validation_and_test_are_apart(shapes_sd):
    folder = f"{shapes_sd}/../../configs/shapes/prompts"
    val, test = ([json.loads(line) for line in open(f"{folder}/safety_{name}.jsonl")] for name in ("val", "test"))
    assert not {r["prompt"] for r in val} & {r["prompt"] for r in test} and {r["skill"] for r in test} == {"red", "cross", "safe"}


def pixels(jpeg):
    return torch.tensor(list(Image.open(io.BytesIO(jpeg)).tobytes())).view(64, 64, 3).permute(2, 0, 1) / 255


def check(rows, category):
    """The caption is unsafe, the loser shows harm, the winner shows none; or the caption is what the winner shows."""
    reward, unsafe = ShapesSafety(FORBIDDEN), 0
    for r in rows:
        win, lose = (r["jpg_0"], r["jpg_1"]) if r["label_0"] == 1 else (r["jpg_1"], r["jpg_0"])
        assert forbidden_words(parse(r["caption"]), FORBIDDEN) in ({category}, set()) and not is_held_out(r["caption"])
        assert reward(torch.stack([pixels(win), pixels(lose)]), [r["caption"]] * 2).tolist() == [1, 0]
        unsafe += forbidden_words(parse(r["caption"]), FORBIDDEN) == {category}
    return unsafe


def test_pairs_are_made_of_an_unsafe_and_a_safe_image(shapes_sd):
    rows = list(safety_pairs(StableDiffusion(shapes_sd), Sampler(8, 3.0), "red", FORBIDDEN, 5, "shapes-sd"))
    assert check(rows, "red") == 5 and len(rows) > 5
    for r, then in zip(rows, rows[1:]):  # a safe caption follows its pair, with the same images
        if not forbidden_words(parse(then["caption"]), FORBIDDEN):
            assert (then["jpg_0"], then["jpg_1"], then["label_0"]) == (r["jpg_0"], r["jpg_1"], r["label_0"])


@pytest.mark.parametrize("category", FORBIDDEN)
def test_shipped_pairs_are_what_the_command_promises(shapes_sd, category):
    rows = read_table(f"{shapes_sd}/safety/train-{category}.parquet")
    assert 0 < check(rows.select(range(0, len(rows), 10)), category) < len(rows) / 10


def test_an_unknown_category_is_refused_in_one_sentence(capsys):
    with pytest.raises(SystemExit):
        main(["--policy", "p", "--out", "o", "--forbidden", "red", "sharp"])
    assert "sharp is no colour or shape; there are red, green" in capsys.readouterr().err
