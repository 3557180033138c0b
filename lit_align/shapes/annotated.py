"""Scenes that simulated annotators compare or rank, generated without end: data on which an objective of reward
modelling can be measured, because every annotator's utility is known."""

import random
from typing import Literal

import torch
from torch import Tensor

from lit_align.data.datamodule import AlignData
from lit_align.shapes.annotators import Annotator, qualities
from lit_align.shapes.data import draw
from lit_align.shapes.render import render, resize
from lit_align.shapes.scenes import SIZE


class Annotated(AlignData):
    """Rendered scenes of random captions, K of them to a row, judged by one of several annotators in turn. With K = 2 a
    PairBatch with `label`, else a RankingBatch: a ranking drawn from Plackett-Luce with the annotator's temperature
    (one scene after another, the best first), cut into `levels` groups of equal images if asked for. With `every` all
    annotators judge every pair, each a dimension: a RankingBatch of two images, scores 1 and 0, or 0.5 in a tie.

    Columns: `user_id`, the annotator; `p`, for pairs the probability that this annotator prefers `win` (0.5 in a tie).
    Rows are generated from their number and the seed; validation rows are other ones.

    Args:
        annotators: name -> Annotator. Its qualities must not depend on the caption, which is that of the first scene.
        k: scenes of a row.
        ties: of pairs: draw other scenes, or keep them with `label` 0.5.
        every: all annotators judge every pair.
        levels: number of groups of a ranking; None for K.
        n, n_val: rows in an epoch and in validation.
    """

    image_keys = ("win", "lose")

    def __init__(
        self,
        annotators: dict[str, Annotator],
        k: int = 2,
        ties: Literal["drop", "keep"] = "drop",
        every: bool = False,
        levels: int | None = None,
        n: int = 100_000,
        n_val: int = 1000,
        resolution: int | None = SIZE,
        **kwargs,
    ):
        super().__init__(resolution=resolution, **kwargs)
        self.annotators, self.k, self.ties, self.levels = annotators, k, ties, levels
        self.rows = {"train": n, "val": n_val}
        self.every = every
        if k > 2 or every:
            self.image_keys = ("images",)
        if every and (k, ties) != (2, "keep"):
            raise ValueError("every: annotators judge pairs, and some of them are ties: set k to 2 and ties to keep.")

    def load(self, split: str):
        from datasets import Dataset

        first = 0 if split == "train" else 10**9
        return Dataset.from_dict({"index": list(range(first, first + self.rows[split]))})

    def judged(self, index: int) -> tuple[list, str, str, Tensor]:
        """A row's scenes, caption, annotator and the annotator's utilities (K,)."""
        seeds = random.Random(f"{self.seed}-{index}")
        name = list(self.annotators)[index % len(self.annotators)]
        annotator = self.annotators[name]
        while True:
            drawn = [draw(self.seed, seeds.randrange(2**60)) for _ in range(self.k)]
            caption, scenes = str(drawn[0][0]), [scene for _, scene in drawn]
            worth = annotator.utility([qualities(s, caption) for s in scenes])
            if self.k > 2 or self.ties == "keep" or abs(worth[0] - worth[1]) >= annotator.tie:
                return scenes, caption, name, worth

    def collate(self, rows: list[dict]) -> dict:
        found = [self.judged(row["index"]) for row in rows]
        images = resize(render([scene for scenes, *_ in found for scene in scenes]), self.resolution)
        images = images.unflatten(0, (-1, self.k))
        names = [name for _, _, name, _ in found]
        batch = {"prompt": [text for _, text, _, _ in found], "index": [row["index"] for row in rows]}
        if self.every:
            choices = [self.choices(scenes, text, row["index"]) for (scenes, text, *_), row in zip(found, rows)]
            first = torch.tensor(choices)  # (B, D)
            return batch | {"columns": {}, "images": images, "scores": torch.stack([first, 1 - first], 1)}
        batch["columns"] = {"user_id": names}
        draws = [torch.Generator().manual_seed(self.seed + 1_000_003 * row["index"]) for row in rows]
        worth = torch.stack([u for *_, u in found])
        if self.k > 2:
            scores = torch.stack([self.ranks(self.annotators[n], u, g) for n, u, g in zip(names, worth, draws)])
            return batch | {"images": images, "scores": scores[..., None]}
        label = torch.tensor([self.annotators[n].prefer(*u.split(1), g).item() for n, u, g in zip(names, worth, draws)])
        p = torch.tensor([self.annotators[n].probability(*u.split(1)).item() for n, u in zip(names, worth)])
        swap = label == 0
        win = torch.where(swap[:, None, None, None], images[:, 1], images[:, 0])
        lose = torch.where(swap[:, None, None, None], images[:, 0], images[:, 1])
        batch["columns"]["p"] = torch.where(swap, 1 - p, p).tolist()
        return batch | {"win": win, "lose": lose, "label": torch.where(label == 0.5, 0.5, 1.0)}

    def choices(self, scenes: list, caption: str, index: int) -> list[float]:
        """What each annotator says of two scenes: 1 if the first is better, 0, or 0.5."""
        g, found = torch.Generator().manual_seed(self.seed + 1_000_003 * index), [qualities(s, caption) for s in scenes]
        return [a.prefer(*a.utility(found).split(1), g).item() for a in self.annotators.values()]

    def ranks(self, annotator: Annotator, utility: Tensor, generator: torch.Generator) -> Tensor:
        """Scores (K,) of a ranking, K - 1 for the best and 0 for the worst, or as many values as there are levels."""
        gumbel = -torch.empty(self.k).exponential_(generator=generator).log()
        order = (utility / annotator.temperature + gumbel).argsort().argsort()  # 0 for the worst
        return (order * (self.levels or self.k) // self.k).float()
