"""Random changes of scenes, captions and images."""

import random

import pytest
import torch
from parts import T

from lit_align.shapes.augment import blur, corrupt, describe
from lit_align.shapes.scenes import SKILLS, Object, parse, random_caption, random_scene, satisfies


def captions(n, seed=0):
    rng = random.Random(seed)
    return [random_caption(SKILLS[i % len(SKILLS)], rng) for i in range(n)], rng


def test_a_corrupted_scene_has_one_change_and_does_not_satisfy_its_caption():
    some, rng = captions(300)
    numbers = set()
    for caption in some:
        scene = random_scene(caption, rng)
        bad = corrupt(scene, caption, rng)
        assert satisfies(scene, caption) and not satisfies(bad, caption)
        numbers.add(len(bad) - len(scene))
        if len(bad) == len(scene):
            changed = [(a, b) for a, b in zip(scene, bad) if a != b]
            assert 1 <= len(changed) <= 2
            if len(changed) == 2:  # two objects exchanged places or colours
                assert {a[2:4] for a, _ in changed} == {b[2:4] for _, b in changed}
                assert {a.color for a, _ in changed} == {b.color for _, b in changed}
    assert numbers == {-1, 0, 1}


def test_a_scene_satisfies_its_description():
    some, rng = captions(300, 1)
    kinds = set()
    for caption in some:
        scene = random_scene(caption, rng)
        said = describe(scene, rng)
        if said is not None:
            assert satisfies(scene, parse(str(said)))
            kinds.add((len(said.objects), said.relation is not None))
    assert {(1, False), (2, False), (2, True), (3, False)} <= kinds
    assert describe([], rng) is None
    assert describe([Object("red", None, 20, 20, 7)], rng) is None  # no shape of ours


def test_blur_is_gaussian():
    image = torch.zeros(2, 3, 15, 15)
    image[:, 1, 7, 7] = 1
    got, sigma = blur(image, T([0.5, 1.0])), (0.5, 1.0)
    for b, s in enumerate(sigma):
        k = torch.exp(-torch.arange(-2.0, 3.0).square() / (2 * s * s))
        k = k / k.sum()
        torch.testing.assert_close(got[b, 1, 5:10, 5:10], k[:, None] * k)
        assert got[b, [0, 2]].abs().max() == 0 and got[b].sum() == pytest.approx(1, abs=1e-5)
