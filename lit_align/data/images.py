"""The one reader of images: encoded bytes, files and PIL images to tensors."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

READER = 2  # the version of this reader: what is cached from its pixels is made anew when it changes
LONGEST = 4  # sides: a longer image is cropped before it is resized


def decode(cell, resolution: int, where: str) -> Tensor:
    """An image cell (bytes, a path, a PIL image, or a datasets Image dict) as (3, resolution, resolution) in [0, 1].

    The image is turned as its EXIF orientation says; transparent pixels are shown on white; 16-bit values and float
    values in [0, 1] are rounded to 8 bits; of an animation the first frame is taken; ICC profiles are not applied. The
    shorter side is resized (bilinear), then the centre is cropped; nothing is random, so a resumed run sees the same
    pixels. A cell that is no image raises ValueError with `where` in it.
    """
    from PIL import Image

    image = open_image(cell, where)
    w, h = image.size
    size = [max(resolution, round(side * resolution / min(w, h))) for side in (w, h)]
    image = image.resize(size, Image.Resampling.BILINEAR)
    image = crop_centre(image, resolution, resolution)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def open_image(cell, where: str):
    """The cell's image in mode RGB, upright, at most LONGEST times as long as it is wide (the centre is kept)."""
    from PIL import Image, ImageOps

    try:
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            cell = Path(cell).read_bytes()
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(cell)) if isinstance(cell, bytes) else cell)
        side = LONGEST * min(image.size)
        return to_rgb(crop_centre(image, min(image.width, side), min(image.height, side)))
    except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        mend = "mend it or set --data.on_corrupt skip"
        raise ValueError(f"{where} holds no readable image ({error}); {mend}.") from error


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
