"""Rendering, against areas and centres known in closed form."""

import math

import pytest
import torch

from lit_align.shapes.render import BACKGROUND, render, resize
from lit_align.shapes.scenes import COLORS, SHAPES, Object

AREA = {"circle": math.pi, "square": 4, "triangle": 2, "cross": 20 / 9}  # over r^2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_area_place_and_colour(shape):
    x, y, r = 30.3, 26.8, 11.0
    (image,) = render([[Object("yellow", shape, x, y, r)]])
    color = torch.tensor(COLORS["yellow"])
    cover = (image[0] - BACKGROUND) / (color[0] - BACKGROUND)
    assert cover.sum() == pytest.approx(AREA[shape] * r * r, rel=0.01)
    at = torch.arange(64) + 0.5
    low = r / 3 if shape == "triangle" else 0  # a triangle's centroid lies below the centre of its box
    assert (cover.sum(0) @ at / cover.sum()).item() == pytest.approx(x, abs=0.1)
    assert (cover.sum(1) @ at / cover.sum()).item() == pytest.approx(y + low, abs=0.1)
    torch.testing.assert_close(image[:, 26, 30], color)
    assert (image[:, 0, 0] == BACKGROUND).all()


def test_scenes_of_different_length_and_an_empty_one():
    one, two = Object("red", "circle", 15, 15, 7), Object("blue", "square", 45, 45, 7)
    images = render([[one], [one, two], []])
    assert images.shape == (3, 3, 64, 64) and (images[2] == BACKGROUND).all()
    torch.testing.assert_close(images[1], images[0] + render([[two]])[0] - BACKGROUND)


def test_resize():
    images = torch.rand(2, 3, 64, 64)
    assert resize(images, 64) is images and resize(images, 32).shape == (2, 3, 32, 32)
    assert resize(torch.rand(1, 3, 32, 64), 64).shape == (1, 3, 64, 64)
    torch.testing.assert_close(resize(torch.full((1, 3, 96, 96), 0.3), 64), torch.full((1, 3, 64, 64), 0.3))
