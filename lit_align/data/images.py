"""The one reader of images: encoded bytes, files and PIL images to tensors."""

import io
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

READER = 2  # the version of this reader: what is cached from its pixels is made anew when it changes
ORIENTATION = 0x0112  # the EXIF tag
LONGEST = 4  # sides: a longer image is cropped before it is resized


def decode(cell, size: int | tuple[int, int], where: str) -> Tensor:
    """An image cell (bytes, a path, a PIL image, or a datasets Image dict) as (3, height, width) in [0, 1].

    The image is turned as its EXIF orientation says; transparent pixels are shown on white; 16-bit values and float
    values in [0, 1] are rounded to 8 bits; of an animation the first frame is taken; ICC profiles are not applied. It
    is resized until it covers the size (bilinear, proportions kept), then the centre is cropped; nothing is random, so
    a resumed run sees the same pixels. A cell that is no image raises ValueError with `where` in it.

    Args:
        size: (height, width), or the side of a square.
    """
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size
    image = to_upright_rgb(cell, where)
    w, h = image.size
    if height * w >= width * h:  # wider than the size: the height decides
        covering = (max(width, round(w * height / h)), height)
    else:
        covering = (width, max(height, round(h * width / w)))
    image = crop_centre(image.resize(covering, Image.Resampling.BILINEAR), width, height)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


@contextmanager
def opened(cell, where: str):
    """The cell as a PIL image that may not be loaded yet; ValueError with `where` if it is none, also from within."""
    from PIL import Image

    try:
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str | bytes):
            with Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell) as image:
                yield image
        else:
            cell.size  # of what is no image: AttributeError
            yield cell
    except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        mend = "mend it or leave its row out (--data.on_corrupt skip does, for pairs and captioned images)"
        raise ValueError(f"{where} holds no readable image ({error}); {mend}.") from error


def image_size(cell, where: str) -> tuple[int, int]:
    """(width, height) of the upright image, from its header."""
    with opened(cell, where) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5
        return image.size[::-1] if turned else image.size


def to_upright_rgb(cell, where: str):
    """The cell's image in mode RGB, upright, at most LONGEST times as long as it is wide (the centre is kept)."""
    from PIL import ImageOps

    with opened(cell, where) as image:
        image = ImageOps.exif_transpose(image)
        side = LONGEST * min(image.size)
        return to_rgb(crop_centre(image, min(image.width, side), min(image.height, side)))


def crop_centre(image, width: int, height: int):
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)) if image.size != (width, height) else image


def to_rgb(image):
    """A PIL image of any mode in mode RGB."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):  # one channel of floats, or of 16 bits or more
        x = np.asarray(image).astype(np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        if not (x.min() >= 0 and x.max() <= top):
            raise ValueError(
                f"values from {x.min():g} to {x.max():g}: save it in 8 bits, in 16 bits or as floats in [0, 1]"
            )
        image = Image.fromarray(np.rint(x / top * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
