"""The one reader of videos: files, arrays and folders of frames to tensors."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_align.data.images import decode

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".npz", ".npy")
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SIGNS = {b"PK\x03\x04": ".npz", b"\x93NUM": ".npy", b"GIF8": ".gif"}  # the first bytes of such files
MEND = "mend it or leave its row out (--data.on_corrupt skip does, for pairs and captioned videos)"


def decode_video(cell, frames: int, fps: float, size: int | tuple[int, int], where: str) -> Tensor:
    """A video cell as (F, 3, height, width) in [0, 1]: F frames at `fps` a second from the video's start, each resized
    and cropped as `images.decode` does. Nothing is random.

    A cell is a .mp4, .mov, .mkv, .webm or .avi file (by PyAV), a .gif, a .npz or .npy array (frames, height, width, 3)
    of 8-bit values (an .npz may hold `fps`), a folder of images in the order of their names, the bytes of such a file,
    or a datasets Video dict. The frame nearest in time is taken where the rates differ; arrays and folders without a
    rate are taken to have `fps`. A cell that is no video, or is too short, raises ValueError with `where` in it.
    """
    kept, n = {}, 0
    with readable(where):
        rate, _, images = opened(cell)
        picks = chosen(frames, fps, rate or fps)
        for n, image in enumerate(images, 1):
            if n - 1 in picks:
                kept[n - 1] = decode(image, size, where)
            if n > picks[-1]:
                break
    if n <= picks[-1]:
        raise ValueError(too_short(n, frames, fps, rate or fps, where))
    return torch.stack([kept[i] for i in picks])


@contextmanager
def readable(where: str):
    """ValueError with `where` for what makes a video unreadable."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{where} holds no readable video ({error}); {MEND}.") from error


def too_short(n: int, frames: int, fps: float, rate: float, where: str) -> str:
    """What is said of a video of n frames at `rate` a second from which `frames` at `fps` cannot be taken."""
    return (
        f"{where} is a video of {n} frames at {rate:g} a second, and {frames} frames at {fps:g} a second are needed: "
        "set model.policy.num_frames or model.policy.fps, or leave its row out (--data.on_corrupt skip)."
    )


def chosen(frames: int, fps: float, rate: float) -> list[int]:
    """Indices of the frames of a video of `rate` a second that are nearest to `frames` times at `fps` a second."""
    return [int(k * rate / fps + 0.5) for k in range(frames)]


def opened(cell) -> tuple[float | None, int, Iterator]:
    """Frames a second (None where the cell does not say), how many frames there are (0: not known), and the frames, as
    what `images.decode` takes."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not isinstance(cell, str | bytes):
        raise ValueError(f"a cell of type {type(cell).__name__}")
    if isinstance(cell, str) and os.path.isdir(cell):
        return from_folder(cell)
    kind = os.path.splitext(cell)[1].lower() if isinstance(cell, str) else SIGNS.get(cell[:4])
    source = io.BytesIO(cell) if isinstance(cell, bytes) else cell
    return {".npz": from_array, ".npy": from_array, ".gif": from_gif}.get(kind, from_file)(source)


def from_folder(folder: str) -> tuple[None, int, Iterator]:
    files = sorted(os.path.join(folder, f) for f in os.listdir(folder) if f.lower().endswith(STILLS))
    if not files:
        raise ValueError(f"the folder {folder} has no images")
    return None, len(files), iter(files)


def from_array(source) -> tuple[float | None, int, Iterator]:
    from PIL import Image

    array, rate = np.load(source), None
    if not isinstance(array, np.ndarray):  # an archive: its one array of four axes
        rate = float(array["fps"]) if "fps" in array.files else None
        found = [values for name in array.files if (values := array[name]).ndim == 4]
        if len(found) != 1:
            raise ValueError(f"{len(found)} arrays of (frames, height, width, 3)")
        array = found[0]
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
        raise ValueError(f"an array {array.shape} of {array.dtype}: give 8-bit values (frames, height, width, 3)")
    return rate, len(array), (Image.fromarray(frame) for frame in array)


def from_gif(source) -> tuple[float | None, int, Iterator]:
    from PIL import Image, ImageSequence

    image = Image.open(source)
    milliseconds = image.info.get("duration")
    frames = (frame.convert("RGB") for frame in ImageSequence.Iterator(image))
    return (1000 / milliseconds if milliseconds else None), image.n_frames, frames


def from_file(source) -> tuple[float | None, int, Iterator]:
    try:
        import av
    except ImportError as error:
        raise ImportError('video files are read by PyAV: pip install "lit-align[video]"') from error
    try:
        container = av.open(source)
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(str(error)) from error

    def frames():
        with container:
            try:
                for frame in container.decode(stream):
                    yield frame.to_image()
            except av.FFmpegError as error:
                raise ValueError(str(error)) from error

    return (float(stream.average_rate) if stream.average_rate else None), stream.frames, frames()


def measure(cell, frames: int, fps: float, where: str) -> bool:
    """Whether a video is longer than `frames` at `fps` a second, so that its end is cut off; ValueError if it is
    shorter."""
    with readable(where):
        rate, n, images = opened(cell)
        n = n or sum(1 for _ in images)
    need = chosen(frames, fps, rate or fps)[-1] + 1
    if n < need:
        raise ValueError(too_short(n, frames, fps, rate or fps, where))
    return n > need + (rate or fps) / fps


def check_lengths(rows, columns: dict[str, str], frames: int, fps: float, on_corrupt: str):
    """The rows whose videos can be opened and are long enough, and how many of them are cut. With `on_corrupt` "error"
    the first other one raises ValueError.

    Args:
        columns: the keys of the video columns, and their names in the file.
    """
    kept, cut, bad = [], 0, []
    for i, row in enumerate(rows.select_columns(["index", "file", *columns])):
        where = f"row {row['index']}, column {{}} of {row['file']}"
        try:
            cut += any([measure(row[key], frames, fps, where.format(column)) for key, column in columns.items()])
            kept.append(i)
        except ValueError as error:
            if on_corrupt == "error":
                raise
            bad.append(str(error))
    if bad:
        rank_zero_warn(f"{len(bad)} of {len(rows)} rows are skipped; the first: {bad[0]}")
    return (rows.select(kept) if bad else rows), cut
