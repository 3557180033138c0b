"""Several rewards: side by side, or as one weighted sum."""

import torch
from torch import Tensor, nn

from lit_align.rewards.reward import Reward


def moments(r: Tensor) -> Tensor:
    """Count, sum and sum of squares of rewards (N, R), in double: (3, R). Those of two sets add up."""
    r = r.detach().double()
    return torch.stack([torch.ones_like(r), r, r.square()]).sum(1)


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) each, from moments (3, R)."""
    n, total, squares = moments
    return total / n, (squares / n - (total / n).square()).clamp(min=0).sqrt()


class MultiReward(Reward):
    """R rewards side by side, for what tells them apart: (B, R).

    Args:
        rewards: name -> reward.
    """

    name = "several"

    def __init__(self, rewards: dict[str, Reward]):
        super().__init__()
        self.parts = nn.ModuleDict(rewards)
        self.differentiable = all(reward.differentiable for reward in rewards.values())

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.stack([reward(images, prompts).float() for reward in self.parts.values()], 1)


class WeightedSum(Reward):
    """sum_i w_i (r_i - mean_i) / std_i, so that a weight says how much a reward counts, whatever its unit.

    Mean and deviation are those of all that r_i has scored so far, this call included, on all ranks, and constants for
    gradient; they are in the checkpoint. Scores to be compared come from one call. A training run logs each r_i, in
    its own unit, as `train/reward/<name>`.

    Args:
        rewards: name -> reward.
        weights: name -> w (default: 1 for each).
        normalise: false leaves the rewards in their units: sum_i w_i r_i.
    """

    name = "weighted_sum"

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float] | None = None, normalise: bool = True):
        super().__init__()
        self.multi, self.normalise = MultiReward(rewards), normalise
        self.differentiable = self.multi.differentiable
        self.weights = weights or dict.fromkeys(rewards, 1.0)
        if self.weights.keys() != rewards.keys():
            raise ValueError(
                f"weights names {', '.join(self.weights)}; rewards are {', '.join(rewards)}: name the same."
            )
        self.moments = torch.zeros(3, len(rewards), dtype=torch.double)  # count, sum, squares of each
        self.latest: dict[str, Tensor] = {}  # name -> (B,), what each said last

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        r = self.multi(images, prompts)  # (B, R)
        self.latest = dict(zip(self.multi.parts, r.detach().unbind(1), strict=True))
        w = r.new_tensor([self.weights[name] for name in self.latest])
        return (self.normalised(r) if self.normalise else r) @ w

    def normalised(self, r: Tensor) -> Tensor:
        """Rewards (B, R) less their mean, over their deviation."""
        new = moments(r)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(new)
        self.moments = self.moments.to(new) + new
        mean, std = mean_and_std(self.moments)
        return (r - mean.to(r)) / std.where(std > 1e-6, 1.0).to(r)

    def get_extra_state(self) -> Tensor:
        return self.moments.cpu()

    def set_extra_state(self, state: Tensor) -> None:
        self.moments = state
