"""Shapes as a dataset: an endless supply of scenes with captions, drawn anew from their row number."""

import random

import torch.nn.functional as F

from lit_align.data.datamodule import AlignData
from lit_align.shapes.render import render
from lit_align.shapes.scenes import SIZE, SKILLS, random_caption, random_scene


class _Scenes:
    """Row i is a caption and a scene drawn from the seed (seed, i)."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed}-{index}")
        caption = random_caption(rng.choice(SKILLS), rng)
        return {"prompt": str(caption), "scene": random_scene(caption, rng), "index": index}


class Shapes(AlignData):
    """Images of the Shapes world with true captions: batches {"image", "prompt", "index"}.

    Args:
        n: rows in an epoch.
        resolution: scenes are drawn at 64 pixels and resized to this.
    """

    def __init__(self, n: int = 1_000_000, resolution: int = SIZE, **kwargs):
        super().__init__(resolution=resolution, **kwargs)
        self.n = n

    def load(self, split: str):
        return _Scenes(self.n, self.seed) if split == "train" else None

    def collate(self, rows: list[dict]) -> dict:
        image = render([row["scene"] for row in rows])
        if self.resolution != SIZE:
            image = F.interpolate(image, self.resolution, mode="bilinear", antialias=True).clamp(0, 1)
        return {"image": image, "prompt": [row["prompt"] for row in rows], "index": [row["index"] for row in rows]}
