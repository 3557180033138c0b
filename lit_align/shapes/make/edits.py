"""Makes preference pairs of edits: an image, the instruction to recolour its shape, the edited image and a wrong one.

`python -m lit_align.shapes.make.edits --out checkpoints/shapes-edits` writes `pairs.parquet` and `prompts.parquet`,
with other instructions and without the results.
"""

import argparse
import io
import os
import random

from PIL import Image

from lit_align.shapes.render import render
from lit_align.shapes.scenes import COLORS, SHAPES, SIZE, Object


def png(scene: list[Object]) -> bytes:
    """A scene as the bytes of a PNG."""
    pixels = (render([scene])[0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_pair(rng: random.Random) -> dict:
    """{"caption" (the instruction), "source", "target" (what the result shows), "jpg_0" (preferred), "jpg_1",
    "label_0"}. The worse image is the source unchanged, or has the new colour but another place."""
    old, new = rng.sample(list(COLORS), 2)
    shape, r = rng.choice(SHAPES), rng.uniform(6, 12)
    (x, y), elsewhere = [(rng.uniform(r + 2, SIZE - r - 2), rng.uniform(r + 2, SIZE - r - 2)) for _ in range(2)]
    source, good, moved = (
        png([Object(c, shape, *at, r)]) for c, at in ((old, (x, y)), (new, (x, y)), (new, elsewhere))
    )
    row = {"caption": f"make the {shape} {new}", "source": source, "target": f"a {new} {shape}", "skill": "recolour"}
    return row | {"jpg_0": good, "jpg_1": rng.choice([source, moved]), "label_0": 1.0}


def main(args: list[str] | None = None) -> None:
    from datasets import Dataset

    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.edits", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--n", type=int, default=64, help="number of pairs, and of prompts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)
    rng = random.Random(args.seed)
    os.makedirs(args.out, exist_ok=True)
    Dataset.from_list([make_pair(rng) for _ in range(args.n)]).to_parquet(os.path.join(args.out, "pairs.parquet"))
    rows = Dataset.from_list([make_pair(rng) for _ in range(args.n)]).remove_columns(["jpg_0", "jpg_1", "label_0"])
    rows.rename_column("caption", "prompt").to_parquet(os.path.join(args.out, "prompts.parquet"))
    print(f"{args.n} pairs and {args.n} prompts in {args.out}")


if __name__ == "__main__":
    main()
