"""The image reader, on files of every kind that datasets hold; what is due is computed with numpy."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from lit_align.data.images import decode

SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes) -> torch.Tensor:
    return decode(data, SIDE, "row 0")


def test_images_keep_their_proportions():
    wide = Image.new("RGB", (40, 20))
    wide.paste((255, 0, 0), (10, 0, 30, 20))  # a red centre square
    assert decode(encoded(wide), 20, "")[0].min() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright_as_a_viewer_shows_it(orientation):
    """The tag says how the stored pixels have to be turned: EXIF 2.3, table of Orientation."""
    upright = np.arange(SIDE * SIDE * 3).reshape(SIDE, SIDE, 3) % 251
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # row 0 of the stored image is the right side
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored, np.uint8))
    tags = image.getexif()
    tags[0x0112] = orientation
    assert torch.equal((read(encoded(image, exif=tags)) * 255).round(), torch.tensor(upright).permute(2, 0, 1).float())


def grey(kind: str) -> bytes:
    if kind == "float TIFF":
        return encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF")
    if kind == "8-bit PNG":
        return encoded(Image.fromarray(np.rint(RAMP * 255).astype(np.uint8)))
    return encoded(Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16)), kind.split()[1])


@pytest.mark.parametrize("kind", ["16-bit PNG", "16-bit TIFF", "float TIFF", "8-bit PNG"])
def test_greys_of_any_depth(kind):
    due = torch.tensor(RAMP).expand(3, SIDE, SIDE).float()
    torch.testing.assert_close(read(grey(kind)), due, atol=0.51 / 255, rtol=0)


def transparent(kind: str) -> bytes:
    """A red square on transparent pixels whose hidden colour is green."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[..., 1] = 255
    pixels[4:12, 4:12] = (255, 0, 0, 255)
    image = Image.fromarray(pixels)
    if kind == "palette":
        return encoded(image.quantize(8))
    if kind == "palette with one transparent entry":
        flat = image.convert("RGB").quantize(2)
        return encoded(flat, transparency=flat.getpixel((0, 0)))
    if kind == "grey":
        return encoded(image.convert("LA"))
    return encoded(
        image, {"PNG": "PNG", "WebP": "WEBP"}[kind], **({"lossless": True, "exact": True} if kind == "WebP" else {})
    )


@pytest.mark.parametrize("kind", ["PNG", "WebP", "palette", "palette with one transparent entry", "grey"])
def test_transparency_is_shown_on_white(kind):
    x = read(transparent(kind))
    assert (x[:, 0, 0] == 1).all() and (x[:, 15, 15] == 1).all()
    assert x[2, 8, 8] < 0.5  # the square itself
    half = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 51))  # a fifth of red on four fifths of white
    torch.testing.assert_close(read(encoded(half))[:, 0, 0], torch.tensor([1, 0.8, 0.8]), atol=1 / 255, rtol=0)


def test_cmyk():
    x = read(encoded(Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "TIFF"))  # magenta and yellow: red
    assert x[0].min() == 1 and x[1:].max() == 0


def test_an_extreme_shape_is_cropped_before_it_is_resized():
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 20_000, 3), np.uint8)))
    tracemalloc.start()  # Pillow's own buffers are not seen by it: arrays and tensors are
    x = decode(data, 256, "row 0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.shape == (3, 256, 256) and peak < 30e6
    long = Image.new("RGB", (2000, 20))
    long.paste((255, 0, 0), (990, 0, 1010, 20))  # the centre square
    assert decode(encoded(long), 20, "")[0].min() == 1
    largest = []
    resize = Image.Image.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", lambda self, size, *a: largest.append(size) or resize(self, size, *a))
        decode(data, 256, "row 0")
    assert list(map(tuple, largest)) == [(1024, 256)]


@pytest.mark.parametrize("values", [(0.0, 255.0), (-1.0, 1.0), (0.0, float("nan"))])
def test_floats_of_another_range_are_refused(values):
    image = np.full((SIDE, SIDE), values[0], np.float32)
    image[0] = values[1]
    with pytest.raises(ValueError, match=r"row 0 holds no readable image \(values from .* floats in \[0, 1\]"):
        read(encoded(Image.fromarray(image), "TIFF"))
