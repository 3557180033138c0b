"""Shapes as a dataset: scenes with captions, each drawn from its row number."""

import random

import torch.nn.functional as F

from lit_align.data.datamodule import AlignData
from lit_align.shapes.render import render
from lit_align.shapes.scenes import SIZE, SKILLS, Caption, Object, random_caption, random_scene


def draw(seed: int, index: int) -> tuple[Caption, list[Object]]:
    """The caption and the scene of a row."""
    rng = random.Random(f"{seed}-{index}")
    caption = random_caption(rng.choice(SKILLS), rng)
    return caption, random_scene(caption, rng)


def captions(n: int, seed: int):
    """The rows of the table."""
    for index in range(n):
        yield {"prompt": str(draw(seed, index)[0]), "index": index}


class Shapes(AlignData):
    """Images of the Shapes world with true captions: batches {"image", "prompt", "index"}.

    Args:
        n: rows in an epoch.
        resolution: scenes are drawn at 64 pixels and resized to this.
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
        image = render([draw(self.seed, row["index"])[1] for row in rows])
        if self.resolution != SIZE:
            image = F.interpolate(image, self.resolution, mode="bilinear", antialias=True).clamp(0, 1)
        return {"image": image, "prompt": [row["prompt"] for row in rows], "index": [row["index"] for row in rows]}
