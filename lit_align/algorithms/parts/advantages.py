"""Advantages: a sample's reward relative to a baseline from its prompt, its group or the whole batch."""

import zlib
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor, nn


def local_advantages(method: L.LightningModule, prompts: list[str], reward: Tensor) -> Tensor:
    """This rank's advantages (N,) of rewards (N,), or (N, R): `method.advantage` over all ranks' samples, clipped to +-
    `method.max_advantage`. A sample that could not be scored (NaN) is left out and has advantage 0."""
    prompt_id = torch.tensor([zlib.crc32(p.encode()) for p in prompts], device=reward.device)
    prompt_id, reward = method.all_gather(prompt_id).flatten(), method.all_gather(reward).view(-1, *reward.shape[1:])
    known = scored(reward)  # (ranks * N,)
    advantage = reward.new_zeros(len(reward))
    advantage[known] = method.advantage(prompt_id[known], reward[known])
    rank = method.global_rank if method.trainer.world_size > 1 else 0
    return advantage.view(-1, len(prompts))[rank].clamp(-method.max_advantage, method.max_advantage)


def scored(reward: Tensor) -> Tensor:
    """(N,) bool: False where one of a sample's rewards (N,), or (N, R), is NaN: it could not be scored."""
    return ~reward.isnan().view(len(reward), -1).any(1)


def equal_rewards(group: Tensor, reward: Tensor) -> Tensor:
    """(N,) bool: True where all rewards of the sample's group are the same number, from groups (N,) and rewards (N,).
    The advantage is 0 there; in float32 a mean of equal numbers can differ from them."""
    n = int(group.max()) + 1
    extreme = lambda how: reward.new_zeros(n).scatter_reduce(0, group, reward, how, include_self=False)
    return (extreme("amin") == extreme("amax"))[group]


def group_of(prompt_id: Tensor) -> tuple[Tensor, Tensor]:
    """Index (N,) of each sample's prompt, and number of samples of each prompt (G,). Raises ValueError if every prompt
    has one sample."""
    _, group = prompt_id.unique(return_inverse=True)
    count = torch.bincount(group)
    if (count == 1).all():
        raise ValueError(
            "the advantage compares the samples of a prompt, and every prompt has one: set samples_per_prompt to 2 or "
            "more (samples that could not be scored do not count)."
        )
    return group, count


class Advantage(nn.Module):
    """Base of the advantages. `takes_several_rewards` is True if it takes R rewards of each sample, (N, R)."""

    takes_several_rewards = False

    @abstractmethod
    def forward(self, prompt_id: Tensor, reward: Tensor) -> Tensor:
        """Advantages (N,) from prompt ids (N,) and rewards (N,), gathered from all ranks."""


class PerPrompt(Advantage):
    """DDPO's per-prompt statistics (arXiv 2305.13301, section 4.3): A = (r - mean) / (std + 1e-6) over the prompt's
    last rewards.

    New rewards are appended first. A prompt with fewer than `min_count` stored rewards is normalised by the whole
    batch's statistics. Equal rewards give 0. The stored rewards persist across steps and are in the checkpoint; the
    prompts that were seen least recently are forgotten beyond `max_prompts`.

    Args:
        buffer_size: rewards stored per prompt.
        min_count: smallest number of stored rewards for statistics of the prompt's own.
        max_prompts: prompts whose rewards are stored (for SDPO: prompts times denoising steps).
    """

    def __init__(self, buffer_size: int = 32, min_count: int = 16, max_prompts: int = 50_000):
        super().__init__()
        self.buffer_size, self.min_count, self.max_prompts = buffer_size, min_count, max_prompts
        self.memory: dict[int, deque] = {}  # by prompt id, the least recently seen first

    def forward(self, prompt_id: Tensor, reward: Tensor) -> Tensor:
        """Advantages (N,) from prompt ids (N,) and rewards (N,), gathered from all ranks."""
        advantage = torch.empty_like(reward)
        for prompt in prompt_id.unique().tolist():
            rows = prompt_id == prompt
            past = self.memory[prompt] = self.memory.pop(prompt, deque(maxlen=self.buffer_size))
            past.extend(reward[rows].tolist())
            pool = reward if len(past) < self.min_count else reward.new_tensor(list(past))
            scaled = (reward[rows] - pool.mean()) / (pool.std(correction=0) + 1e-6)
            advantage[rows] = scaled if pool.min() < pool.max() else 0.0
        for prompt in list(self.memory)[: -self.max_prompts]:
            del self.memory[prompt]
        return advantage

    def get_extra_state(self) -> tuple:
        return tuple((prompt, tuple(past)) for prompt, past in self.memory.items())  # one leaf of a sharded checkpoint

    def set_extra_state(self, state: tuple) -> None:
        self.memory.clear()
        for prompt, past in state:
            self.memory[prompt] = deque(past, maxlen=self.buffer_size)


class Group(Advantage):
    """GRPO's advantage: A = (r - group mean) / (std + 1e-4); a group is one prompt's samples of the current rollout.
    A group of equal rewards has advantage 0.

    Args:
        global_std: divide by the standard deviation of all rewards (Flow-GRPO, arXiv 2505.05470), not of the group's.
    """

    def __init__(self, global_std: bool = True):
        super().__init__()
        self.global_std = global_std

    def forward(self, prompt_id: Tensor, reward: Tensor) -> Tensor:
        """Advantages (N,) from prompt ids (N,) and rewards (N,), gathered from all ranks."""
        group, count = group_of(prompt_id)
        mean = torch.zeros_like(count, dtype=reward.dtype).index_add(0, group, reward) / count
        centred = (reward - mean[group]).masked_fill(equal_rewards(group, reward), 0.0)
        if self.global_std:
            return centred / (reward.std(correction=0) + 1e-4)
        variance = torch.zeros_like(mean).index_add(0, group, centred.square()) / count
        return centred / (variance.sqrt()[group] + 1e-4)


class LeaveOneOut(Advantage):
    """RLOO's advantage (arXiv 2402.14740, eq. 7): A = r - mean reward of the prompt's other samples of the rollout."""

    def forward(self, prompt_id: Tensor, reward: Tensor) -> Tensor:
        """Advantages (N,) from prompt ids (N,) and rewards (N,), gathered from all ranks; 0 for a lone sample."""
        group, counts = group_of(prompt_id)
        count = counts[group]
        total = torch.zeros_like(reward).index_add(0, group, reward)[group]
        others = (total - reward) / (count - 1).clamp(min=1)
        return (reward - others).masked_fill(equal_rewards(group, reward), 0.0)


class WinRate(Advantage):
    """Pref-GRPO's advantage (arXiv 2508.20751): a sample's reward becomes its win rate against the prompt's other
    samples (ties count half), then GRPO's advantage follows. Small differences in reward are not amplified.

    Args:
        global_std: as in Group.
    """

    def __init__(self, global_std: bool = False):
        super().__init__()
        self.group = Group(global_std)

    def forward(self, prompt_id: Tensor, reward: Tensor) -> Tensor:
        """Advantages (N,) from prompt ids (N,) and rewards (N,), gathered from all ranks."""
        beats = (reward[:, None] > reward).float() + 0.5 * (reward[:, None] == reward).float()
        rival = (prompt_id[:, None] == prompt_id).float().fill_diagonal_(0)
        return self.group(prompt_id, (beats * rival).sum(1) / rival.sum(1).clamp(min=1))


class PerReward(Advantage):
    """GDPO's advantage (Liu et al. 2026, arXiv 2601.05242): A = sum_k w_k A_k over R rewards, divided by its standard
    deviation over all samples + 1e-4. A_k = (r_k - group mean) / (group std + 1e-4) of reward k alone, so neither its
    unit nor its spread decides how much it counts. (The paper subtracts the batch's mean of A, too, which is 0.)

    Args:
        weights: w_k, in the order of the rewards (default: 1 for each).
    """

    takes_several_rewards = True

    def __init__(self, weights: Sequence[float] | None = None):
        super().__init__()
        self.weights, self.group = weights, Group(global_std=False)

    def forward(self, prompt_id: Tensor, reward: Tensor) -> Tensor:
        """Advantages (N,) from prompt ids (N,) and rewards (N, R), gathered from all ranks."""
        if reward.ndim == 1:
            raise ValueError("PerReward adds up the advantages of several rewards, and there is one: use MultiReward.")
        weights = self.weights or [1.0] * reward.shape[1]
        if len(weights) != reward.shape[1]:
            raise ValueError(f"PerReward has {len(weights)} weights, and there are {reward.shape[1]} rewards.")
        total = sum(w * self.group(prompt_id, r) for w, r in zip(weights, reward.unbind(1), strict=True))
        return total / (total.std(correction=0) + 1e-4)
