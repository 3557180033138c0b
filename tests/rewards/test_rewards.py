import io

import pytest
import torch
from PIL import Image

from lit_align.rewards.clip_score import CLIPScore, pixels
from lit_align.rewards.jpeg import JPEGCompressibility


def test_jpeg_size_in_kilobytes():
    torch.manual_seed(0)
    flat, noise = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64)
    buffer = io.BytesIO()
    Image.fromarray((noise[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=95)
    small, large = JPEGCompressibility()(torch.cat([flat, noise]), ["", ""]).tolist()
    assert large == pytest.approx(-len(buffer.getvalue()) / 1000) and large < small < 0
    assert JPEGCompressibility(incompressibility=True)(noise, [""]).item() == pytest.approx(-large)


def test_clip_sees_a_large_image_as_its_processor_does(tmp_path):
    """transformers' own image processor on the same picture, up to its 8-bit rounding."""
    from transformers import CLIPImageProcessorPil

    score = CLIPScore("tiny")
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 9), (40, 60), mode="bilinear")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    picture = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    want = processor(picture, return_tensors="pt").pixel_values
    assert (pixels(score.model, image) - want).abs().max() < 0.06


def test_clip_score_is_differentiable_and_a_sample_at_a_time():
    score = CLIPScore("tiny")
    images = torch.rand(2, 3, 20, 16, requires_grad=True)
    both = score(images, ["a", "b"])
    both.sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close(both, torch.cat([score(images[:1], ["a"]), score(images[1:], ["b"])]))
