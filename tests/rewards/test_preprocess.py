"""Tensors are prepared as PIL's image processors prepare pictures, and gradients go through."""

import numpy as np
import pytest
import torch
from PIL import Image
from reward_parts import noise, photo, pil

from lit_align.rewards.preprocess import CLIP_MEAN, CLIP_STD, crop, letterbox, normalise, pad_to_square, stretch

SIZES = pytest.mark.parametrize("size", [(512, 512), (300, 451), (451, 300), (97, 64), (40, 60), (224, 300)], ids=str)
KINDS = pytest.mark.parametrize("make,mean,most", [(noise, 0.005, 0.1), (photo, 0.002, 0.01)], ids=["noise", "photo"])


def unnormalised(processor, image, mean, std):
    """What the processor makes of the picture, in [0, 1]."""
    x = processor(pil(image), return_tensors="pt").pixel_values[0]
    return x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)


def near(got, want, mean, most):
    """Within the processors' rounding to 8 bits, before they resize and after each axis; noise is clipped there, too."""
    assert got.shape == want.shape
    assert (got - want).abs().mean() < mean and (got - want).abs().max() < most


@SIZES
@KINDS
def test_crop_is_clips_processor(size, make, mean, most):
    from transformers import CLIPImageProcessorPil

    image = make(*size)
    near(crop(image, 224)[0], unnormalised(CLIPImageProcessorPil(), image[0], CLIP_MEAN, CLIP_STD), mean, most)


@SIZES
@KINDS
def test_stretch_is_vits_processor(size, make, mean, most):
    from transformers import ViTImageProcessorPil

    processor, image = ViTImageProcessorPil(size={"height": 384, "width": 384}), make(*size)
    near(stretch(image, 384)[0], unnormalised(processor, image[0], (0.5,) * 3, (0.5,) * 3), mean, most)


@SIZES
def test_letterbox_shows_the_whole_image_on_black(size):
    """The picture resized by PIL and pasted into the middle of a black one."""
    image = photo(*size)
    scale = 224 / max(size)
    height, width = (round(scale * length) for length in size)
    page = Image.new("RGB", (224, 224))
    page.paste(pil(image[0]).resize((width, height), Image.BICUBIC), ((224 - width) // 2, (224 - height) // 2))
    near(letterbox(image, 224)[0], torch.from_numpy(np.array(page) / 255).permute(2, 0, 1).float(), 0.002, 0.02)


def test_letterbox_of_a_wide_image_has_bars_of_56_rows():
    """HPS v2's validation transform on a red image of 256 x 512: 112 rows of it; the bars are 0, before normalising."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 256, 512)
    got = letterbox(red, 224)[0]
    assert got[:, :56].abs().max() == 0 and got[:, 168:].abs().max() == 0
    torch.testing.assert_close(got[:, 56:168], red[0, :, :112, :224])
    bars = normalise(got)[:, 0, 0]
    torch.testing.assert_close(bars, -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD))
    assert letterbox(red[..., :112, :224], 224).shape == (1, 3, 224, 224)  # the official one has no bars here


def test_a_square_has_the_colour_it_is_given():
    image, colour = photo(5, 8), (0.2, 0.4, 0.6)
    got = pad_to_square(image, colour)
    assert got.shape == (1, 3, 8, 8)
    torch.testing.assert_close(got[:, :, 1:6], image)
    for rows in (got[:, :, :1], got[:, :, 6:]):
        torch.testing.assert_close(rows, torch.tensor(colour).view(1, 3, 1, 1).expand_as(rows))


@pytest.mark.parametrize("prepare", [lambda x: normalise(crop(x, 6)), lambda x: stretch(x, 6), lambda x: letterbox(x, 6), pad_to_square], ids=["crop", "stretch", "letterbox", "square"])
@pytest.mark.parametrize("size", [(9, 13), (4, 5)], ids=["smaller", "larger"])
def test_gradients_are_finite_differences(prepare, size):
    x = (0.3 + 0.4 * noise(*size)).double().requires_grad_()
    assert torch.autograd.gradcheck(prepare, x)


def test_every_pixel_that_is_seen_has_a_gradient_and_no_other():
    weight = torch.rand(3, 8, 8) + 0.5  # of one sign: the filter's lobes cancel nowhere
    for prepare, columns in ((lambda x: stretch(x, 8), (0, 48)), (lambda x: letterbox(x, 8), (0, 48)), (lambda x: crop(x, 8), (12, 36))):
        x = torch.full((1, 3, 24, 48), 0.5, requires_grad=True)
        (prepare(x) * weight).sum().backward()
        a, b = columns
        assert x.grad[..., a:b].abs().min() > 0
        assert not x.grad[..., : max(a - 4, 0)].any() and not x.grad[..., b + 4 :].any()
