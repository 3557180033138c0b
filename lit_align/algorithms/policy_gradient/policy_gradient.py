"""The policy-gradient family: prompts -> recorded rollouts -> rewards -> advantages -> `loss(step)` on single
denoising steps."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_align.algorithms.algorithm import Algorithm
from lit_align.algorithms.parts.advantages import PerPrompt, local_advantages
from lit_align.diffusion.sampler import Hook, Sampler, Trajectory, select_rows
from lit_align.diffusion.transition import DDIM, Gaussian
from lit_align.rewards.reward import Reward


class StepBatch(NamedTuple):
    """Denoising steps of a rollout, seen again by the policy that learns from them."""

    gaussian: Gaussian  # p_theta(x_s | x_t, c) now
    log_prob: Tensor  # (M,) of the x_s that was drawn, under `gaussian`, mean over the sample
    old_log_prob: Tensor  # (M,) when it was drawn
    advantage: Tensor  # (M,)
    x_t: Tensor
    x_s: Tensor
    t: Tensor
    s: Tensor
    cond: dict[str, Tensor]
    reference: Gaussian | None = None  # p_ref(x_s | x_t, c), without gradient, for a method that uses the reference
    old_mean: Tensor | None = None  # (M, ...) of the law x_s was drawn from

    @property
    def log_ref_ratio(self) -> Tensor:
        """log p_theta / p_ref of the x_s that was drawn, (M,)."""
        return self.log_prob - self.reference.log_prob(self.x_s)

    @property
    def ratio(self) -> Tensor:
        """rho = p_theta / p_old of the step, (M,)."""
        return (self.log_prob - self.old_log_prob).exp()


def clipped(rho: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's max(-A rho, -A clip(rho, 1 - e, 1 + e)) (arXiv 1707.06347, eq. 7), (M,)."""
    return torch.maximum(-advantage * rho, -advantage * rho.clamp(1 - clip_range, 1 + clip_range))


class PolicyGradient(Algorithm):
    """Base of the methods that learn from rewards of their own samples. A method overrides `loss`.

    A training step draws `samples_per_prompt` trajectories for each prompt of the batch, scores them, and makes
    `inner_epochs` x `updates` optimizer steps, each on all denoising steps of its share of the trajectories.

    Logs `train/reward` (mean), `train/ratio`, `train/clip_fraction` where a method has one, and `train/approx_kl`.

    Args:
        reward: what is maximised.
        rollout: the stochastic sampler that acts (default: DDIM with eta 1, 50 steps, guidance 5).
        advantage: turns gathered rewards into advantages (default: per-prompt statistics). Methods that learn from
            rewards as they are, or have statistics of their own, leave it aside.
        samples_per_prompt: trajectories per prompt.
        updates: optimizer steps per inner epoch.
        inner_epochs: passes over the rollout.
        minibatch: rows of one forward: trajectories while drawing, denoising steps while learning. That they are as
            many keeps the first ratios at 1 in 16 bits, too.
        max_grad_norm: gradient clipping (here, not in the Trainer: optimization is manual).
        max_advantage: advantages are clipped to +- this.
    """

    feedback, samples_online = ("prompt",), True
    group_size = 1  # how many successive trajectories `loss` sees at once, all at the same step
    noise_group_size = 1  # how many successive trajectories start from one noise

    def __init__(
        self,
        reward: Reward,
        rollout: Sampler | None = None,
        advantage: nn.Module | None = None,
        samples_per_prompt: int = 1,
        updates: int = 1,
        inner_epochs: int = 1,
        minibatch: int = 8,
        max_grad_norm: float = 1.0,
        max_advantage: float = 5.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.reward = reward.eval().requires_grad_(False)
        self.rollout = rollout or Sampler(steps=50, guidance_scale=5.0, transition=DDIM(eta=1.0))
        self.advantage = advantage or PerPrompt()
        self.samples_per_prompt, self.updates, self.inner_epochs = samples_per_prompt, updates, inner_epochs
        self.minibatch, self.max_grad_norm, self.max_advantage = minibatch, max_grad_norm, max_advantage

    @abstractmethod
    def loss(self, step: StepBatch) -> Tensor:
        """The method's equation: (M / group_size,) from M denoising steps."""

    def training_step(self, batch: dict, batch_idx: int) -> None:
        self.check(batch)
        self.learn(*self.collect([p for p in batch["prompt"] for _ in range(self.samples_per_prompt)]))

    def collect(self, prompts: list[str]) -> tuple[Trajectory, Tensor]:
        """Trajectories, and the advantages of each (N,) or of each of its steps (N, T)."""
        trajectory, x_0 = self.draw_trajectories(prompts)
        return trajectory, self.advantages(prompts, self.log_reward(self.scored(x_0, prompts), prompts))

    def draw_trajectories(
        self, prompts: list[str], hook: Hook | None = None, leaves: int = 1
    ) -> tuple[Trajectory, Tensor]:
        """Trajectories (N) and where they end (N, ...), drawn a minibatch at a time; `leaves`: of a prompt."""
        if self.samples_per_prompt % self.group_size:
            raise ValueError(
                f"samples_per_prompt is {self.samples_per_prompt}; {type(self).__name__} compares {self.group_size} "
                f"trajectories of a prompt: give a multiple of {self.group_size}."
            )
        x, states = (
            torch.randn(len(prompts) // self.noise_group_size, *self.policy.latent_shape, device=self.device),
            [],
        )
        x, n = x.repeat_interleave(self.noise_group_size, 0), max(1, self.minibatch // leaves)
        for i in range(0, len(prompts), n):
            states.append(self.rollout(self.policy, prompts[i : i + n], x=x[i : i + n], hook=hook, record=True))
        return Trajectory.cat([state.trajectory for state in states]), torch.cat([state.x for state in states])

    @torch.no_grad()
    def scored(self, x_0: Tensor, prompts: list[str]) -> Tensor:
        """Rewards (N,) of latents (N, ...), decoded a minibatch at a time, judged all at once."""
        images = torch.cat([self.policy.decode(part) for part in x_0.split(self.minibatch)])
        return self.reward(images, prompts).float()

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        """This rank's advantages (N,), from the statistics of all ranks' samples."""
        return local_advantages(self, prompts, reward)

    def learn(self, trajectory: Trajectory, advantage: Tensor) -> None:
        """The update loop: every optimizer step sees all denoising steps of its trajectories."""
        steps = self.trained_steps(trajectory)
        advantage = advantage.view(len(advantage), -1).expand_as(trajectory.t)
        groups = torch.arange(len(advantage)).view(-1, self.group_size)
        for _ in range(self.inner_epochs):
            for part in torch.randperm(len(groups)).chunk(self.updates):
                self.update(trajectory, advantage, groups[part], steps)
        if scheduler := self.lr_schedulers():
            scheduler.step()

    def update(
        self, trajectory: Trajectory, advantage: Tensor, groups: Tensor, steps: Tensor, reference: bool = True
    ) -> None:
        """One optimizer step on the given steps of groups (G, group_size) of trajectories. Advantages (N, T, ...);
        `reference`: whether `loss` sees it, where the method uses one."""
        optimizer = self.optimizers()
        optimizer.zero_grad()
        parts = list(self.minibatches(groups, steps))
        for k, (rows, i) in enumerate(parts, 1):
            loss = self.loss(self.revisit(trajectory, advantage, rows, i, reference))
            self.require_finite(loss.mean(), select_rows(trajectory.prompts, rows.tolist()))
            with self.gradient_sync(last=k == len(parts)):
                self.manual_backward(loss.sum() * self.group_size / sum(len(rows) for rows, _ in parts))
            self.log_mean("train/loss", loss.detach().mean(), len(loss))
        optimizer.step()

    @torch.no_grad()
    def every_step(
        self, trajectory: Trajectory, groups: Tensor, steps: Tensor, *functions: Callable[[StepBatch], Tensor]
    ) -> list[Tensor]:
        """What functions of a step (M,) say of the given steps: (N, T) each, 0 elsewhere. The first of two passes of a
        method whose objective is of whole trajectories: its derivatives in these are the second's advantages."""
        found = [torch.zeros_like(trajectory.log_prob) for _ in functions]
        for rows, i in self.minibatches(groups, steps):
            step = self.revisit(trajectory, trajectory.log_prob, rows, i)
            for values, function in zip(found, functions):
                values[rows, i] = function(step)
        return found

    def minibatches(self, groups: Tensor, steps: Tensor):
        """Yields rows and steps (M,), in random order; a group's rows stay together."""
        cells = torch.cartesian_prod(torch.arange(len(groups)), steps).view(-1, 2)
        for part in cells[torch.randperm(len(cells))].split(max(1, self.minibatch // self.group_size)):
            yield groups[part[:, 0]].flatten(), part[:, 1].repeat_interleave(self.group_size)

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        """Indices of the denoising steps that are learnt from: those with noise, hence with a likelihood."""
        steps = (trajectory.log_prob[0] != 0).nonzero().flatten().cpu()
        if not len(steps):
            raise ValueError(
                f"{type(self).__name__} learns from the likelihood of noisy steps, and the rollout has none: give it a "
                "transition with noise, as DDIM with eta 1, or FlowSDE."
            )
        return steps

    def gaussian(self, m: dict) -> Gaussian:
        """p(x_s | x_t, c) of a minibatch under the policy as it is, through the code that drew it."""
        return self.rollout.gaussian(self.policy, m["x_t"], m["t"], m["s"], m["cond"])[0]

    def revisit(
        self, trajectory: Trajectory, advantage: Tensor, rows: Tensor, steps: Tensor, reference: bool = True
    ) -> StepBatch:
        """Trajectory rows' steps (M,) under the present policy, with their advantages of all (N, T, ...)."""
        m = trajectory.minibatch(rows, steps)
        gaussian, law = self.gaussian(m), None
        if self.uses_reference and reference:
            with torch.no_grad(), self.policy.reference():
                law = self.gaussian(m)
        step = StepBatch(
            gaussian=gaussian,
            log_prob=gaussian.log_prob(m["x_s"]),
            old_log_prob=m["log_prob"],
            old_mean=m["mean"],
            advantage=advantage[rows, steps],
            **{k: m[k] for k in ("x_t", "x_s", "t", "s", "cond")},
            reference=law,
        )
        with torch.no_grad():
            self.log_mean("train/ratio", step.ratio.mean(), len(rows))
            self.log_mean("train/approx_kl", 0.5 * (step.log_prob - step.old_log_prob).square().mean(), len(rows))
        return step
