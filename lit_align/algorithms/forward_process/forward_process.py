"""The forward-process family: prompts -> samples -> rewards -> advantages -> noised samples -> `loss(batch)`."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.algorithms.online import Online, repeat_rows
from lit_align.algorithms.parts.advantages import Advantage, Group, local_advantages, scored
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import select_rows
from lit_align.policies.policy import OLD
from lit_align.rewards.reward import Reward


class NoisedBatch(NamedTuple):
    """M noised samples and the predictions there, all of the policy's own prediction type."""

    x_0: Tensor  # (M, ...)
    x_t: Tensor  # (M, ...)
    t: Tensor  # (M,)
    target: Tensor  # (M, ...) of the prediction
    pred: Tensor  # (M, ...) of the policy
    advantage: Tensor  # (M,)
    old: Tensor | None = None  # (M, ...) of the old policy, without gradient; None if unused
    ref: Tensor | None = None  # (M, ...) of the reference, without gradient; None if unused


def ramp(step: int, first: float, slope: float, last: float, after: int = 0) -> float:
    """A decay that is `first` until step `after`, then grows by `slope` per step up to `last`."""
    return min(first + slope * max(step - after, 0), last)


class ForwardProcess(Online):
    """Base of the methods that weight the denoising loss of their own samples by advantages of either sign. A method
    overrides `loss`.

    A training step samples K images for each prompt of the batch with any sampler, without likelihoods, and makes
    `updates` optimizer steps, each on its share of the samples at all their training times, with fresh noise each time.
    Then the old policy, a moving average of the trained parameters, is updated.

    Logs `train/reward` (mean) and `train/reference_error` (mean squared distance of the policy's prediction from the
    reference's).

    Args:
        reward: the reward to maximise.
        rollout: sampler of the training samples (default: 10 deterministic steps without guidance).
        advantage: turns the rewards of all ranks into advantages (default: the group's, with the global std).
        samples_per_prompt: K.
        updates: optimizer steps per training step.
        minibatch: rows (sample, time) per forward; at least K if a prompt's samples are compared.
        fraction: of the rollout's times, drawn at random, at which a sample is trained.
        decay: of the old policy after optimizer step i, as (first, slope, last, after): min(first + slope max(i -
            after, 0), last).
        max_advantage: advantages are clipped to +- this.
    """

    feedback = ("prompt",)
    grouped = False  # True if `loss` compares a prompt's samples: they share t and are consecutive
    uses_old = True  # True if `loss` reads NoisedBatch.old
    reference_guidance = 1.0  # guidance scale of the reference's prediction

    def __init__(
        self,
        reward: Reward,
        rollout: Sampler | None = None,
        advantage: Advantage | None = None,
        samples_per_prompt: int = 24,
        updates: int = 1,
        fraction: float = 0.99,
        decay: tuple[float, float, float, int] = (0.0, 0.001, 0.5, 0),
        max_advantage: float = 5.0,
        **kwargs,
    ):
        super().__init__(rollout=rollout or Sampler(10, 1.0), updates=updates, **kwargs)
        if self.grouped and samples_per_prompt < 2:
            raise ValueError(f"{type(self).__name__} compares a prompt's samples: set samples_per_prompt to 2 or more.")
        self.reward = reward.eval().requires_grad_(False)
        self.advantage = advantage or Group()
        self.takes_several_rewards = self.advantage.takes_several_rewards
        self.takes_masked_rewards = not self.grouped
        self.samples_per_prompt, self.fraction = samples_per_prompt, fraction
        self.decays, self.max_advantage = {OLD: decay}, max_advantage

    @abstractmethod
    def loss(self, b: NoisedBatch) -> Tensor:
        """The method's equation: (M,) from M noised samples, or one value per group of K."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            for name in self.decays:
                self.policy.add_old(name)

    def sampling_policy(self) -> AbstractContextManager:
        """Context in which the active weights are those of the behaviour policy."""
        return self.policy.old()

    @property
    def group_size(self) -> int:
        """Successive samples that share a time and a minibatch."""
        return self.samples_per_prompt if self.grouped else 1

    def times(self, n: int) -> Tensor:
        """Training times (n, T) of n samples: a random subset of the rollout's."""
        grid = self.rollout.timesteps(self.policy)[:-1]
        order = torch.rand(n // self.group_size, len(grid), device=grid.device).argsort(1)
        return grid[order[:, : max(1, int(self.fraction * len(grid)))]].repeat_interleave(self.group_size, 0)

    def noise(self, x_0: Tensor) -> Tensor:
        """eps of a minibatch (M, ...)."""
        return torch.randn_like(x_0)

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        """{"x_0" (N, ...), "t" (N, T), "advantage" (N,), "weight" (N,), "cond" of each prompt} of N = B K samples; a
        prompt's K samples are consecutive. A sample that could not be scored has weight 0; the mean weight over all
        ranks is 1."""
        k = self.samples_per_prompt
        rows = repeat_rows(batch, k)
        with self.sampling_policy():
            latents = [self.draw_latents(batch) for _ in range(k)]
        x_0 = torch.stack(latents, 1).flatten(0, 1)
        reward = self.log_reward(self.judge(self.reward, x_0, rows, self.minibatch), rows["prompt"])
        known = scored(reward).to(x_0)
        return {
            "x_0": x_0,
            "t": self.times(len(x_0)),
            "advantage": local_advantages(self, self.policy.keys(rows["prompt"], rows["columns"]), reward),
            "weight": known / self.all_gather(known).mean(),
            "cond": self.cond(batch),
        }

    def optimizer_steps(self, collected: dict) -> Iterator[list[dict]]:
        """Minibatches of each update: everything collected, with the rows and the indices of their times."""
        n, steps = collected["t"].shape
        groups = torch.arange(n).view(-1, self.group_size)
        for part in self.shares(len(groups)):
            cells = torch.cartesian_prod(part, torch.arange(steps)).view(-1, 2)
            count = len(cells) * self.group_size
            cells = cells[torch.randperm(len(cells))].split(max(1, self.minibatch // self.group_size))
            minibatches = []
            for cell in cells:
                rows, step = groups[cell[:, 0]].flatten(), cell[:, 1].repeat_interleave(self.group_size)
                minibatches.append(collected | {"row": rows, "step": step, "share": len(rows) / count})
            yield minibatches

    def batch_loss(self, m: dict) -> Tensor:
        loss = self.loss(self.noised_batch(m))
        weight = m["weight"][m["row"]].view(len(loss), -1)[:, 0]  # of a group it is 1
        return m["share"] * (weight * loss).mean()

    def noised_batch(self, m: dict) -> NoisedBatch:
        """Noises a minibatch's samples and evaluates the policy, and the old policy and the reference if used."""
        process, row = self.policy.process, m["row"]
        x_0, t = m["x_0"][row], m["t"][row, m["step"]]
        eps, cond = self.noise(x_0), select_rows(m["cond"], (row // self.samples_per_prompt).tolist())
        x_t, old, ref = process.add_noise(x_0, eps, t), None, None
        with torch.no_grad():
            if self.uses_old:
                with self.policy.old():
                    old = self.policy.denoise(x_t, t, cond)
            if self.uses_reference:
                with self.policy.reference():
                    ref = self.policy.denoise(x_t, t, cond, self.reference_guidance)
        pred = self.policy.denoise(x_t, t, cond)
        if ref is not None:
            self.log_mean("train/reference_error", self.policy.error(pred.detach(), ref).mean(), len(t))
        return NoisedBatch(x_0, x_t, t, process.target(x_0, eps, t), pred, m["advantage"][row], old, ref)

    def normalised_error(self, x: Tensor, y: Tensor) -> Tensor:
        """mean (x - y)^2 / sg(mean |x - y|) of each sample, the divisor at least 1e-5: (M,)."""
        scale = self.policy.error((x - y).detach().abs().sqrt(), torch.zeros_like(y))  # mean |x - y|
        return self.policy.error(x, y) / scale.clamp(min=1e-5)

    def training_step(self, batch: dict, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        for name, decay in self.decays.items():
            self.policy.update_old(ramp(self.global_step, *decay), name)
