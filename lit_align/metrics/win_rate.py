"""How often one model's sample is better than another's."""

import torch
from torch import Tensor

from lit_align.metrics.metric import Measure, cat, ids_of, wilson


class WinRate(Measure):
    """Share of prompts on which a model's score is above the other's, a tie counted as half, with Wilson's 95 %
    interval over prompts. Diffusion-DPO's protocol (Wallace et al. 2023, arXiv 2311.12908): the same prompts and seeds
    for both, and of several samples of a prompt the median score.

    Args:
        name: in logs.
    """

    def __init__(self, name: str = "win_rate"):
        super().__init__()
        self.name = name
        self.add_rows("ids", dtype=torch.int64)
        self.add_rows("mine")
        self.add_rows("other")

    def update(self, scores: Tensor, other: Tensor, prompts: list[str]) -> None:
        """Scores of both models' samples, (N,) each, and their N prompts."""
        self.ids.append(ids_of(prompts, scores.device))
        self.mine.append(scores.double())
        self.other.append(other.double())

    def compute(self) -> dict[str, Tensor]:
        ids, mine, other = cat(self.ids), cat(self.mine), cat(self.other)
        median = lambda x: torch.stack([x[ids == one].quantile(0.5) for one in ids.unique()])
        a, b = median(mine), median(other)
        rate = ((a > b).double() + 0.5 * (a == b).double()).mean()
        low, high = wilson(rate.item(), len(a))
        found = {self.name: rate, f"{self.name}/low": torch.tensor(low), f"{self.name}/high": torch.tensor(high)}
        return {k: v.float() for k, v in found.items()} | {f"{self.name}/prompts": torch.tensor(float(len(a)))}
