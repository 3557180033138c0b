import io
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lit_align.shapes.judge import ShapesAmbiguity, ShapesJudge, ambiguous, judge, see
from lit_align.shapes.render import render
from lit_align.shapes.scenes import SKILLS, Object, parse, random_caption, random_scene, satisfies


def draw(n, seed=0):
    rng = random.Random(seed)
    captions = [random_caption(SKILLS[i % len(SKILLS)], rng) for i in range(n)]
    return captions, [random_scene(c, rng) for c in captions]


def same(a, b):
    key = lambda o: (o.color, o.shape, o.size)
    return len(a) == len(b) and all(
        any(key(o) == key(p) and abs(o.x - p.x) < 1 and abs(o.y - p.y) < 1 and abs(o.r - p.r) < 1 for p in b) for o in a
    )


def agreement(scenes, images):
    return sum(map(same, scenes, see(images))) / len(scenes)


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255


def blur(images, sigma):
    x = torch.arange(-4, 5)
    k = torch.exp(-(x**2) / (2 * sigma**2))
    k = (k / k.sum()).outer(k / k.sum())[None, None]
    return F.conv2d(F.pad(images.flatten(0, 1)[:, None], (4,) * 4, mode="replicate"), k).view_as(images)


@pytest.mark.slow
def test_the_judge_reads_back_ten_thousand_scenes():
    for seed in range(10):
        captions, scenes = draw(1000, seed)
        images = render(scenes)
        assert agreement(scenes, images) == 1
        assert judge(images, [str(c) for c in captions]).all()


@pytest.mark.parametrize("name,spoil,least", [
    ("blur", lambda x: blur(x, 0.8), 0.99),
    ("jpeg 75", lambda x: torch.stack([jpeg(i, 75) for i in x]), 0.99),
    ("noise", lambda x: (x + 0.08 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1), 0.99),
    ("8 bits", lambda x: (x * 255).round() / 255, 1.0),
])  # fmt: skip
def test_the_judge_withstands(name, spoil, least):
    _, scenes = draw(300, 11)
    assert agreement(scenes, spoil(render(scenes))) >= least


@pytest.mark.parametrize("n,least", [(200, 0.97), pytest.param(3000, 0.99, marks=pytest.mark.slow)])
def test_the_judge_withstands_the_vae(shapes_sd, n, least):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(shapes_sd, subfolder="vae")
    captions, scenes = draw(n, 12)
    verdicts = []
    for i in range(0, n, 100):
        with torch.no_grad():
            y = vae.decode(vae.encode(render(scenes[i : i + 100]) * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        verdicts.append(judge(y.clamp(0, 1), [str(c) for c in captions[i : i + 100]]))
    assert torch.cat(verdicts).mean() >= least


def test_wrong_captions_are_rejected():
    captions, scenes = draw(600, 13)
    images, wrong = render(scenes), captions[1:] + captions[:1]
    truth = [satisfies(scene, caption) for scene, caption in zip(scenes, wrong)]
    assert sum(truth) < 30  # a few captions are true of their neighbour's scene by chance
    assert judge(images, [str(c) for c in wrong]).bool().tolist() == truth


def test_what_is_no_shape_of_ours_is_an_object_all_the_same():
    image = render([[Object("red", "circle", 20, 20, 7)]])
    image[0, :, 40:60, 30:33] = torch.tensor([0.1, 0.9, 0.95]).view(3, 1, 1)  # a cyan bar
    (seen,) = see(image)
    assert sorted((o.color, o.shape) for o in seen if o.shape) == [("red", "circle")] and len(seen) == 2
    assert judge(image, ["a red circle"]).item() == 0


def test_a_colour_between_two_of_ours_is_no_colour():
    image = render([[Object("white", "square", 32, 32, 12)]])
    assert judge(image, ["a white square"]).item() == 1
    image[0, :, 20:44, 20:44] = torch.tensor([0.98, 0.52, 0.15]).view(3, 1, 1)  # orange
    assert [judge(image, [f"a {color}square"]).item() for color in ("", "red ", "yellow ")] == [0, 0, 0]
    image[0, :, 20:44, 20:44] = 0.3  # too faint for an object
    assert judge(image, ["a white square"]).item() == 0


BETWEEN = {  # what scenes never draw, and the nearest that they do
    "size": (Object("red", "circle", 32, 32, 9.2), "a red circle"),
    "named size": (Object("red", "circle", 32, 32, 8.4), "a small circle"),
    "other size": (Object("red", "circle", 32, 32, 8.4), "a large circle"),
}


@pytest.mark.parametrize("name,near", [("size", 1), ("named size", 1), ("other size", 0)])
def test_an_image_that_lies_between_is_wrong_and_ambiguous_if_the_nearest_is_right(name, near):
    o, prompt = BETWEEN[name]
    image = render([[o]])
    assert judge(image, [prompt]).item() == 0 and ambiguous(image, [prompt]).item() == near


def test_a_colour_between_two_near_ones_is_ambiguous():
    image = render([[Object("white", "square", 32, 32, 12)]])
    mix = lambda share: (1 - share) * torch.tensor([1.0, 1, 1]) + share * torch.tensor([0.80, 0.25, 0.95])  # to purple
    verdicts = []
    for share in (0.0, 0.1, 0.5):
        image[0, :, 20:44, 20:44] = mix(share).view(3, 1, 1)
        both = [(judge(image, [p]).item(), ambiguous(image, [p]).item()) for p in ("a white square", "a square", "a cross")]
        verdicts.append(both)
    assert verdicts == [[(1, 0), (1, 0), (0, 0)], [(1, 0), (1, 0), (0, 0)], [(0, 1), (0, 1), (0, 0)]]


def test_a_relation_that_barely_holds_is_ambiguous():
    square = Object("blue", "square", 44, 44, 7)
    seen = {}
    for name, (x, y) in {"clear": (12, 40), "diagonal": (20, 22), "barely": (20, 30), "no": (42, 12)}.items():
        image, prompt = render([[Object("red", "circle", x, y, 7), square]]), ["a red circle left of a blue square"]
        seen[name] = (judge(image, prompt).item(), ambiguous(image, prompt).item())
    assert seen == {"clear": (1, 0), "diagonal": (0, 1), "barely": (1, 0), "no": (0, 0)}
    reward = ShapesAmbiguity()
    assert reward.name == "ambiguous" and reward(image, prompt).tolist() == [0]


def test_empty_and_black_images_hold_nothing():
    assert see(torch.full((2, 3, 64, 64), 0.1)) == [[], []] and see(torch.zeros(1, 3, 64, 64)) == [[]]


def test_the_judge_is_a_reward():
    captions, scenes = draw(12, 15)
    reward = ShapesJudge()
    assert reward.name == "exact" and not reward.differentiable
    assert reward(render(scenes), [str(c) for c in captions]).tolist() == [1.0] * 12
    assert parse(str(captions[0])) == captions[0]
