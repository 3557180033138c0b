"""Pictures of pictures, and videos."""

import math
import os
import textwrap
from fractions import Fraction
from importlib.util import find_spec

from PIL import Image, ImageDraw
from torch import Tensor

from lit_align.paths import unfinished


def to_pil(image: Tensor, least: int = 1, most: int | None = None) -> Image.Image:
    """An image (3, H, W) in [0, 1], enlarged by a whole factor to at least `least` pixels in height, shrunk to
    `most`."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    factor = max(1, math.ceil(least / pixels.shape[0]))
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    if most:
        picture.thumbnail((most, most))
    return picture


def to_pictures(sample: Tensor, least: int = 1, most: int | None = None) -> list[Image.Image]:
    """An image (3, H, W), or all frames of a video (F, 3, H, W), as `to_pil` shows them."""
    return [to_pil(image, least, most) for image in (sample if sample.ndim == 4 else sample[None])]


def strip(pictures: list[Image.Image], shown: int = 4) -> list[Image.Image]:
    """At most `shown` frames of a video, at equal distances from the first to the last; an image as it is."""
    n = min(shown, len(pictures))
    return pictures[:1] if n == 1 else [pictures[round(i * (len(pictures) - 1) / (n - 1))] for i in range(n)]


def save_video(frames: list[Image.Image], path: str, fps: float) -> None:
    """Writes a .gif (by PIL), or a .mp4 (H.264, by PyAV), whole or not at all. An odd last row or column of pixels is
    left out of a .mp4."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = unfinished(path)
    try:
        if path.endswith(".gif"):
            pace = {"duration": round(1000 / fps), "loop": 0}
            frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], **pace)
        else:
            write_mp4(frames, part, fps)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


def write_mp4(frames: list[Image.Image], path, fps: float) -> None:
    import av

    width, height = (side // 2 * 2 for side in frames[0].size)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "15"}
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame.crop((0, 0, width, height)))))
        file.mux(stream.encode())


def video_ending() -> str:
    """.mp4 where PyAV is installed, else .gif."""
    return ".mp4" if find_spec("av") else ".gif"


def save_png(image: Image.Image, path: str) -> None:
    """Writes a PNG whole or not at all."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = unfinished(path)
    try:
        image.save(part, "PNG")
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


def grid(
    rows: list[list[Image.Image]], captions: list[str], colors: list[str] | None = None, heads: list[str] | None = None
) -> Image.Image:
    """A sheet of cells, each a row of images side by side over its caption; up to four cells in a line.

    Args:
        rows: the cells' images, all of one size.
        captions: one per cell, wrapped to its width.
        colors: of the frame of each cell.
        heads: written over the images of every cell.
    """
    w, h = rows[0][0].size
    pad, line = 6, 13
    cell_w = (w + pad) * len(rows[0]) + pad
    letters = max(8, cell_w // 6 - 2)
    lines = [textwrap.wrap(c, letters)[:3] for c in captions]
    top = line + 4 if heads else pad
    cell_h = top + h + 4 + line * max(map(len, lines), default=0) + pad
    across = min(4, len(rows))
    sheet = Image.new("RGB", (across * cell_w, math.ceil(len(rows) / across) * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for i, images in enumerate(rows):
        x, y = i % across * cell_w, i // across * cell_h
        for j, image in enumerate(images):
            left = x + pad + j * (w + pad)
            if heads:
                draw.text((left, y + 2), heads[j], fill="black")
            sheet.paste(image, (left, y + top))
        for k, text in enumerate(lines[i]):
            draw.text((x + pad, y + top + h + 4 + k * line), text, fill="black")
        if colors:
            draw.rectangle((x + 1, y + 1, x + cell_w - 2, y + cell_h - 2), outline=colors[i], width=2)
    return sheet


def animate(
    rows: list[list[list[Image.Image]]],
    captions: list[str],
    path: str,
    fps: float,
    colors: list[str] | None = None,
    heads: list[str] | None = None,
) -> None:
    """Writes a sheet whose cells are rows of videos that play side by side: a .gif. See `grid`."""
    frames = range(len(rows[0][0]))
    save_video([grid([[film[i] for film in row] for row in rows], captions, colors, heads) for i in frames], path, fps)
