"""Makes preference pairs of short videos: a shape that moves steadily is preferred to one that jumps.

`python -m lit_align.shapes.make.videos --out checkpoints/shapes-videos/pairs.parquet`
"""

import argparse
import io
import os
import random

from PIL import Image
from torch import Tensor

from lit_align.shapes.render import render
from lit_align.shapes.scenes import COLORS, SHAPES, SIZE, Object

FRAMES, FPS = 16, 8
WAYS = {"to the right": (1, 0), "to the left": (-1, 0), "down": (0, 1), "up": (0, -1)}


def gif(frames: Tensor) -> bytes:
    """Frames (F, 3, H, W) in [0, 1] as the bytes of a GIF of FPS frames a second."""
    pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    first, *rest = (Image.fromarray(frame) for frame in pixels)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=1000 // FPS, loop=0)
    return file.getvalue()


def make_pair(rng: random.Random) -> dict:
    """A row of Pick-a-Pic's columns `caption`, `jpg_0` (preferred) and `jpg_1`, with GIFs as images."""
    color, shape, way = rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(list(WAYS))
    (dx, dy), side = WAYS[way], rng.uniform(20, SIZE - 20)
    steps = [(k + 0.5) / FRAMES - 0.5 for k in range(FRAMES)]  # from -1/2 to 1/2 of the path
    place = lambda s: ((0.5 + 0.6 * dx * s) * SIZE if dx else side, (0.5 + 0.6 * dy * s) * SIZE if dy else side)
    clip = lambda order: gif(render([[Object(color, shape, *place(s), 8.0)] for s in order]))
    jumps = rng.sample(steps, FRAMES)
    return {"caption": f"a {color} {shape} moves {way}", "jpg_0": clip(steps), "jpg_1": clip(jumps), "label_0": 1.0}


def main(args: list[str] | None = None) -> None:
    from datasets import Dataset

    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.videos", description=__doc__)
    parser.add_argument("--out", required=True, help="parquet file to write")
    parser.add_argument("--n", type=int, default=32, help="number of pairs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)
    rng = random.Random(args.seed)
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    Dataset.from_list([make_pair(rng) for _ in range(args.n)]).to_parquet(args.out)
    print(f"{args.n} pairs in {args.out}")


if __name__ == "__main__":
    main()
