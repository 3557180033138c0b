"""Rewards that compare two images of a prompt."""

from abc import abstractmethod
from zlib import crc32

import torch
from torch import Tensor

from lit_align.rewards.reward import Reward


class PairwiseReward(Reward):
    """The mean probability that an image is better than another image of the same prompt in the call: the win rate in
    its group, as Pref-GRPO uses it (Wang et al. 2025, arXiv 2508.20751). Edits are compared where they share the prompt
    and the column `source`, the image that is edited. Each pair is shown in both orders, and the
    two answers are averaged: that a judge prefers a side does not count.

    ValueError if a prompt has one image: use it where a prompt is sampled several times.
    """

    differentiable, together = False, True
    scale = "a win rate, 0 to 1; the mean of a prompt's images is 0.5"

    @abstractmethod
    def compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        """Probability (N,) that the image shown first is better, of images (N, 3, H, W)."""

    @torch.no_grad()
    def preference(self, a: Tensor, b: Tensor, prompts: list[str]) -> Tensor:
        """Probability (N,) that a is better than b; preference(b, a) is 1 minus it."""
        first = self.compare(torch.cat([a, b]), torch.cat([b, a]), prompts * 2).to(a.device)
        return (first[: len(a)] + 1 - first[len(a) :]) / 2

    def forward(self, images: Tensor, prompts: list[str], source: list | None = None) -> Tensor:
        groups = [(prompt, mark(x)) for prompt, x in zip(prompts, source or [None] * len(prompts), strict=True)]
        for prompt, group in zip(prompts, groups):
            if groups.count(group) < 2:
                raise ValueError(
                    f"{self.name} compares the images of a prompt, and {prompt!r} has one: use it as the reward of a "
                    "method with samples_per_prompt of 2 or more."
                )
        n = len(prompts)
        i, j = zip(*[(i, j) for i in range(n) for j in range(i + 1, n) if groups[i] == groups[j]], strict=True)
        i, j = torch.tensor(i, device=images.device), torch.tensor(j, device=images.device)
        won = self.preference(images[i], images[j], [prompts[k] for k in i.tolist()])  # (pairs,)
        total = torch.zeros(n, device=images.device).index_add(0, i, won).index_add(0, j, 1 - won)
        return total / torch.tensor([groups.count(group) - 1 for group in groups], device=images.device)


def mark(source) -> int | str:
    """What tells the cells of a column apart, images too."""
    return crc32(source.cpu().numpy().tobytes()) if isinstance(source, Tensor) else str(source)
