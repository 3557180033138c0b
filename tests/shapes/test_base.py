"""The shipped base model as a newcomer meets it."""

import pytest
import torch

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.shapes.judge import judge, see

FIRST = [
    "a red circle", "a blue square", "a green triangle", "a yellow cross", "a circle", "a small red circle", "two circles",
    "three green squares", "a red circle and a blue square", "a red circle left of a blue square",
]  # fmt: skip


def draw(shapes_sd, prompts, seeds):
    """The samples (P S, 3, 64, 64) of P prompts, S seeds each, and their prompts."""
    policy, texts = StableDiffusion(shapes_sd), [prompt for prompt in prompts for _ in seeds]
    with torch.no_grad():
        return policy.decode(Sampler(15, 3.0)(policy, texts, seeds=[*seeds] * len(prompts)).x), texts


def test_the_first_picture_is_no_black_frame(shapes_sd):
    images, texts = draw(shapes_sd, FIRST[:1], range(4))
    assert all(see(images)) and judge(images, texts)[0] == 1


@pytest.mark.slow
def test_first_prompts_show_objects_and_leave_room_to_gain(shapes_sd):
    images, texts = draw(shapes_sd, FIRST, range(4))
    empty = [text for text, scene in zip(texts, see(images)) if not scene]
    assert len(empty) <= 1 and 0.5 < judge(images, texts).mean() < 0.8  # "a yellow cross", seed 0, is a black frame
