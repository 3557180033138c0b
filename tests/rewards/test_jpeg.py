import io

import numpy as np
import pytest
import torch
from PIL import Image

from lit_align.rewards.jpeg import JPEGCompressibility

NOISE = torch.from_numpy(np.random.default_rng(0).random((512, 512, 3), dtype=np.float32)).permute(2, 0, 1)[None]


def kilobytes(image):
    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=95)
    return len(buffer.getvalue()) / 1000


@pytest.mark.parametrize("incompressibility,sign,name", [(False, -1, "compressibility"), (True, 1, "incompressibility")])
def test_size_in_kilobytes_both_ways(incompressibility, sign, name):
    """PIL's own file at quality 95; black has 4.7 kB and noise more than 300 at 512 pixels."""
    reward = JPEGCompressibility(incompressibility)
    images = torch.cat([torch.zeros(1, 3, 512, 512), NOISE, torch.full((1, 3, 512, 512), 0.5)])
    got = reward(images, [""] * 3)
    assert got.tolist() == [pytest.approx(sign * kilobytes(image)) for image in images]
    assert 4.6 < sign * got[0] < 4.9 and sign * got[1] > 300
    assert reward.name == name and not reward.differentiable
    small = reward(NOISE[..., :64, :96], [""])  # not square
    assert small.item() == pytest.approx(sign * kilobytes(NOISE[0, :, :64, :96]))


def test_images_are_rounded_to_8_bits():
    reward = JPEGCompressibility()
    assert torch.equal(reward(NOISE, [""]), reward((NOISE * 255).round() / 255, [""]))
