"""The proxy reward of Shapes: what it computes, and that it is a proxy."""

import ast
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parts import T
from torch import nn

import lit_align.shapes.reward as module
from lit_align.data.images import decode
from lit_align.data.tables import read_table
from lit_align.shapes.augment import corrupt
from lit_align.shapes.make.calibrate import agreement
from lit_align.shapes.render import render
from lit_align.shapes.reward import LENGTH, VOCABULARY, ShapesReward, tokens
from lit_align.shapes.scenes import SIZE, SKILLS, random_caption, random_scene

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/shapes-reward/reward.safetensors"


def captions(n, seed=0):
    rng = random.Random(seed)
    return [random_caption(SKILLS[i % len(SKILLS)], rng) for i in range(n)], rng


def test_words_are_numbered_in_order_and_unknown_ones_are_named():
    ids = tokens(["a red circle left of a blue square", "good. two crosses"])
    words = {v: k for k, v in VOCABULARY.items()}
    assert [words[i] for i in ids[0].tolist() if i] == "a red circle left of a blue square".split()
    assert [words[i] for i in ids[1].tolist() if i] == ["good", "two", "crosses"] and ids.shape == (2, LENGTH)
    for caption in captions(200)[0]:
        tokens([f"bad. {caption}"])
    with pytest.raises(ValueError, match="'pink' of 'a pink circle' is none"):
        tokens(["a pink circle"])
    with pytest.raises(ValueError, match=f"1 to {LENGTH} words"):
        tokens(["a red " * LENGTH])


def test_gradients_reach_the_images_and_each_row_stands_alone():
    torch.manual_seed(0)
    reward, images = ShapesReward(), torch.rand(3, 3, SIZE, SIZE, requires_grad=True)
    texts = ["a red circle left of a blue square", "a cross", "good. three small squares"]
    score = reward(images, texts)
    (grad,) = torch.autograd.grad(score[1], images)
    assert score.shape == (3,) and grad[1].abs().max() > 0 and not grad[[0, 2]].any()
    alone = torch.stack([reward(images[i : i + 1], texts[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(score, alone, atol=1e-5, rtol=1e-5)  # padding and company change nothing
    assert reward.embed(images).ndim == 2
    large = F.interpolate(images.detach(), (128, 128), mode="nearest")
    torch.testing.assert_close(reward(F.avg_pool2d(large, 2), texts), score)
    assert reward(large, texts).shape == (3,)


def test_the_order_of_words_is_seen():
    """A caption and the same words in another order are told apart by the network (the shipped weights hardly do)."""
    torch.manual_seed(0)
    reward, image = ShapesReward(), torch.rand(1, 3, SIZE, SIZE).expand(3, -1, -1, -1)
    nn.init.normal_(reward.word_place)
    one, other, same = reward(
        image,
        [
            "a red circle left of a blue square",
            "a blue square left of a red circle",
            "a red circle left of a blue square",
        ],
    )
    assert (one - other).abs() > 1e-3 and (one - same).abs() < 1e-6


def test_the_unit_is_part_of_the_file(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    reward, image = ShapesReward(), torch.rand(1, 3, SIZE, SIZE)
    raw = reward(image, ["a circle"])
    save_file(reward.state_dict() | {"mean": T(3.0), "std": T(0.5)}, tmp_path / "r.safetensors")
    torch.testing.assert_close(ShapesReward(str(tmp_path / "r.safetensors"))(image, ["a circle"]), (raw - 3) / 0.5)


def test_nothing_of_the_judge_is_in_it():
    names = [
        n
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
        for n in [node.module]
    ]
    assert names and not any("judge" in n or "annotators" in n for n in names)


@pytest.fixture(scope="module")
def shipped():
    return ShapesReward(str(CHECKPOINT)).eval()


def test_it_ships_in_a_megabyte():
    from safetensors import safe_open

    assert CHECKPOINT.stat().st_size < 2**20
    with safe_open(CHECKPOINT, "pt") as file:
        assert all(file.get_tensor(k).dtype == torch.float16 for k in file.keys() if k not in ("mean", "std"))


def test_it_tells_right_from_wrong_but_not_always(shipped):
    """On held-out samples of the base model; chance is 0.5, the judge is 1."""
    table = read_table("checkpoints/shapes-sd/lists/train.parquet").select(range(800, 1000))
    texts = [row["prompt"] for row in table for _ in range(4)]
    images = torch.stack([decode(cell, SIZE, "") for row in table for cell in row["images"]])
    right = T([q for row in table for q in row["correct"]]).bool()
    with torch.no_grad():
        score = torch.cat([shipped(x, texts[i * 200 : i * 200 + 200]) for i, x in enumerate(images.split(200))])
    found = agreement(score, right, torch.arange(800) // 4)
    assert 0.75 < found["accuracy"] < 0.98 and found["auc"] > 0.75 and found["pearson"] > 0.4
    assert score.mean().abs() < 0.3 and 0.7 < score.std() < 1.3  # the unit


def test_after_bad_what_suits_the_caption_is_wanted_no_more(shipped):
    rng = random.Random(6)
    some = [random_caption(SKILLS[i % 6], rng) for i in range(200)]
    scenes = [random_scene(caption, rng) for caption in some]
    images = torch.cat([render(scenes), render([corrupt(s, c, rng) for s, c in zip(scenes, some)])])
    with torch.no_grad():
        good, bad = (shipped(images, [f"{word}. {c}" for c in some * 2]) for word in ("good", "bad"))
    gap = lambda score: (score[:200] - score[200:]).mean()
    assert gap(good) > 1 and gap(bad) < 0.1


def test_a_checkpoint_tells_its_size(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    made = ShapesReward(width=32, depth=3)
    save_file(made.state_dict(), tmp_path / "reward.safetensors")
    images, words = torch.rand(2, 3, SIZE, SIZE), ["a red circle", "two blue squares"]
    torch.testing.assert_close(ShapesReward(str(tmp_path / "reward.safetensors"))(images, words), made(images, words))


def test_what_is_held_out_is_the_better_judge():
    """Of rendered scenes against spoiled ones, that neither was trained on: by little (checkpoints/README.md has the
    difference on samples of the base model)."""
    some, rng = captions(400, 12345)
    scenes = [random_scene(caption, rng) for caption in some]
    both = render(scenes + [corrupt(scene, caption, rng) for scene, caption in zip(scenes, some)])
    words = [str(caption) for caption in some] * 2
    right = []
    with torch.no_grad():
        for name in ("reward", "second"):
            good, bad = ShapesReward(str(CHECKPOINT.with_stem(name)))(both, words).chunk(2)
            right.append((good > bad).float().mean().item())
    assert right[1] > right[0] > 0.8
