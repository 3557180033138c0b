"""Encoded images to tensors."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def decode(cell, resolution: int, where: str) -> Tensor:
    """An image cell (bytes, a path, a PIL image, or a datasets Image dict) as (3, resolution, resolution) in [0, 1].

    The shorter side is resized (bilinear), then the centre is cropped; nothing is random, so a resumed run sees the
    same pixels. A cell that is no image raises ValueError with `where` in it.
    """
    from PIL import Image

    try:
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            cell = Path(cell).read_bytes()
        image = (Image.open(io.BytesIO(cell)) if isinstance(cell, bytes) else cell).convert("RGB")
    except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        mend = "mend it or set --data.on_corrupt skip"
        raise ValueError(f"{where} holds no readable image ({error}); {mend}.") from error
    w, h = image.size
    size = [max(resolution, round(side * resolution / min(w, h))) for side in (w, h)]
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    image = image.crop((left, top, left + resolution, top + resolution))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
