"""Several rewards: stacked, or combined to one number."""

import os
from abc import abstractmethod

import torch
from torch import Tensor, nn

from lit_align.rewards.reward import Reward, checked


def moments(r: Tensor) -> Tensor:
    """(3, R) count, sum and sum of squares of rewards (N, R), in double precision. Moments of two sets add up."""
    r = r.detach().double()
    return torch.stack([torch.ones_like(r), r, r.square()]).sum(1)


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (R,) each, from moments (3, R)."""
    n, total, squares = moments
    return total / n, (squares / n - (total / n).square()).clamp(min=0).sqrt()


def merged_columns(rewards: dict[str, Reward]) -> dict[str, bool]:
    """The columns that any of the rewards takes -> True if one of them requires it."""
    merged: dict[str, bool] = {}
    for reward in rewards.values():
        merged |= {name: needed or merged.get(name, False) for name, needed in reward.columns.items()}
    return merged


def score_of(part: Reward, images: Tensor, prompts: list[str], columns: dict[str, list]) -> Tensor:
    """Scores (N,) of a reward inside another one, from its own columns. Raises FloatingPointError at a NaN, unless the
    reward masks: beside one that does, it would pass for an image that could not be scored."""
    own = {name: columns[name] for name in part.columns if name in columns}
    score = checked(part, part(images, prompts, **own), len(images))
    if not part.masks and score.isnan().any():
        raise FloatingPointError(f"the reward {part.name} is nan for {prompts[int(score.isnan().int().argmax())]!r}.")
    return score


class MultiReward(Reward):
    """Stacks R rewards to (N, R), for methods that need them separately.

    Args:
        rewards: name -> reward.
    """

    name = "multi_reward"
    artefact = scale = "its rewards'"
    blind_to = "what all of them are blind to"

    def __init__(self, rewards: dict[str, Reward]):
        super().__init__()
        self.parts, self.names = nn.ModuleDict(rewards), tuple(rewards)
        self.differentiable = all(reward.differentiable for reward in rewards.values())
        self.masks = any(reward.masks for reward in rewards.values())
        self.together = any(reward.together for reward in rewards.values())
        self.videos = all(reward.videos for reward in rewards.values())

    @property
    def columns(self) -> dict[str, bool]:
        return merged_columns(self.parts)

    def save(self, folder: str) -> dict:
        """Writes each reward to `<folder>/<name>`."""
        return {name: part.save(os.path.join(folder, name)) for name, part in self.parts.items()}

    def forward(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        return torch.stack([score_of(part, images, prompts, columns) for part in self.parts.values()], 1)


class Combination(Reward):
    """Base of the rewards that make one number of several: a subclass gives `aggregate`.

    With `normalise`, r_i becomes (r_i - mean_i) / std_i. Mean and standard deviation are over all scores of r_i so far,
    this call included, on all ranks; they have no gradient and are in the checkpoint. A training run logs each r_i, in
    its own unit, as `train/reward/<name>`.
    """

    artefact = "its rewards'"
    scale = "standard deviations; with `normalise: false` its rewards'"
    blind_to = "what all of them are blind to"

    def __init__(self, rewards: dict[str, Reward], normalise: bool):
        super().__init__()
        self.multi, self.normalise, self.names = MultiReward(rewards), normalise, tuple(rewards)
        self.differentiable, self.masks = self.multi.differentiable, self.multi.masks
        self.together, self.videos = self.multi.together, self.multi.videos
        self.moments = torch.zeros(3, len(rewards), dtype=torch.double)  # count, sum, sum of squares of each
        self.latest: dict[str, Tensor] = {}  # name -> (N,), the scores of the last call

    @abstractmethod
    def aggregate(self, r: Tensor) -> Tensor:
        """One number per image (N,) from the rewards (N, R)."""

    @property
    def columns(self) -> dict[str, bool]:
        return self.multi.columns

    def forward(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        return self.combine(self.multi(images, prompts, **columns))

    def components(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        return self.multi(images, prompts, **columns)

    def combine(self, components: Tensor) -> Tensor:
        self.latest = dict(zip(self.names, components.detach().unbind(1), strict=True))
        return self.aggregate(self.normalised(components) if self.normalise else components)

    def normalised(self, r: Tensor) -> Tensor:
        """Rewards (N, R) minus their mean, over their standard deviation."""
        new = moments(r[~r.isnan().any(1)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(new)
        self.moments = self.moments.to(new) + new
        mean, std = mean_and_std(self.moments)
        return (r - mean.to(r)) / std.where(std > 1e-6, 1.0).to(r)

    def get_extra_state(self) -> Tensor:
        return self.moments.cpu()

    def set_extra_state(self, state: Tensor) -> None:
        self.moments = state


class WeightedSum(Combination):
    """sum_i w_i (r_i - mean_i) / std_i: weights are independent of the rewards' units. See Combination.

    Args:
        rewards: name -> reward.
        weights: name -> w (default: 1 for each).
        normalise: false keeps the rewards in their units: sum_i w_i r_i.
    """

    name = "weighted_sum"

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float] | None = None, normalise: bool = True):
        super().__init__(rewards, normalise)
        self.weights = weights or dict.fromkeys(rewards, 1.0)
        if self.weights.keys() != rewards.keys():
            raise ValueError(
                f"weights names {', '.join(self.weights)}; rewards are {', '.join(rewards)}: name the same."
            )

    def aggregate(self, r: Tensor) -> Tensor:
        return r @ r.new_tensor([self.weights[name] for name in self.names])
