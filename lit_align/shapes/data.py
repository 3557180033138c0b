"""Shapes as a dataset: scenes with captions, each generated from its row number and the seed."""

import random

from lit_align.data.datamodule import AlignData
from lit_align.shapes.render import render, resize
from lit_align.shapes.scenes import SIZE, SKILLS, Caption, Object, random_caption, random_scene


def draw(seed: int, index: int) -> tuple[Caption, list[Object]]:
    """The caption and the scene of row `index`."""
    rng = random.Random(f"{seed}-{index}")
    caption = random_caption(rng.choice(SKILLS), rng)
    return caption, random_scene(caption, rng)


def captions(n: int, seed: int):
    """Yields the rows of the table: {"prompt", "index"}."""
    for index in range(n):
        yield {"prompt": str(draw(seed, index)[0]), "index": index}


class Shapes(AlignData):
    """Images of the Shapes world with true captions: batches {"image", "prompt", "index"}.

    Args:
        n: rows in an epoch.
        resolution: of the images, pixels; scenes are rendered at 64 and resized.
    """

    image_keys = ("image",)

    def __init__(self, n: int = 24_000, resolution: int | None = SIZE, **kwargs):
        super().__init__(resolution=resolution, **kwargs)
        self.n = n

    def load(self, split: str):
        from datasets import Dataset

        return (
            Dataset.from_generator(captions, gen_kwargs={"n": self.n, "seed": self.seed}) if split == "train" else None
        )

    def collate(self, rows: list[dict]) -> dict:
        image = resize(render([draw(self.seed, row["index"])[1] for row in rows]), self.resolution)
        return {"image": image, "prompt": [row["prompt"] for row in rows], "index": [row["index"] for row in rows]}
