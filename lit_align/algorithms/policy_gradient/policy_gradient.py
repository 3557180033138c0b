"""The policy-gradient family: prompts -> recorded rollouts -> rewards -> advantages -> `loss(step)` on single
denoising steps."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.algorithms.online import Online, repeat_rows
from lit_align.algorithms.parts.advantages import Advantage, PerPrompt, local_advantages
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, Trajectory, select_rows
from lit_align.diffusion.transition import DDIM, Gaussian
from lit_align.rewards.reward import Reward


class StepBatch(NamedTuple):
    """M denoising steps of a rollout, evaluated under the current policy."""

    gaussian: Gaussian  # p_theta(x_s | x_t, c) of the current policy
    log_prob: Tensor  # (M,) of the recorded x_s under `gaussian`, mean over the sample's axes
    old_log_prob: Tensor  # (M,) under the behaviour policy, which drew x_s
    advantage: Tensor  # (M,)
    x_t: Tensor
    x_s: Tensor
    t: Tensor
    s: Tensor
    cond: dict[str, Tensor]
    reference: Gaussian | None = None  # p_ref(x_s | x_t, c), without gradient; None without a reference
    old_mean: Tensor | None = None  # (M, ...) mean of the behaviour policy's Gaussian
    rows: Tensor | None = None  # (M,) numbers of the steps' trajectories in this rank's rollout

    @property
    def log_ref_ratio(self) -> Tensor:
        """log p_theta / p_ref of the recorded x_s, (M,)."""
        return self.log_prob - self.reference.log_prob(self.x_s)

    @property
    def ratio(self) -> Tensor:
        """rho = p_theta / p_old of the step, (M,)."""
        return (self.log_prob - self.old_log_prob).exp()


class PolicyGradient(Online):
    """Base of the methods that learn from the likelihoods of their own denoising steps. A method overrides `loss`.

    A training step samples `samples_per_prompt` trajectories for each prompt of the batch, scores them, and makes
    `inner_epochs` x `updates` optimizer steps, each on all denoising steps of its share of the trajectories.

    Logs `train/reward` (mean), `train/ratio`, `train/approx_kl`, and `train/clip_fraction` if the method clips.

    Args:
        reward: the reward to maximise.
        rollout: a stochastic sampler (default: DDIM with eta 1, 50 steps, guidance 5).
        advantage: turns the rewards of all ranks into advantages (default: per-prompt statistics). Ignored by methods
            that use raw rewards or statistics of their own.
        samples_per_prompt: trajectories per prompt.
        updates: optimizer steps per inner epoch.
        inner_epochs: passes over the rollout.
        minibatch: rows per forward: trajectories in the rollout, denoising steps in the update.
        max_advantage: advantages are clipped to +- this.
    """

    feedback = ("prompt",)
    uses_advantage = True  # False if the method learns from rewards as they are, or has statistics of its own
    group_size = 1  # successive trajectories that `loss` compares, all at the same step
    noise_group_size = 1  # successive trajectories that start from the same noise

    def __init__(
        self,
        reward: Reward,
        rollout: Sampler | None = None,
        advantage: Advantage | None = None,
        samples_per_prompt: int = 1,
        updates: int = 1,
        inner_epochs: int = 1,
        max_advantage: float = 5.0,
        **kwargs,
    ):
        super().__init__(rollout=rollout or Sampler(50, 5.0, DDIM(eta=1.0)), updates=updates, **kwargs)
        name = type(self).__name__
        if advantage is not None and not self.uses_advantage:
            raise ValueError(f"{name} has no use for {type(advantage).__name__}: leave advantage out.")
        if self.caption_dropout:
            raise ValueError(f"{name} learns from whole rollouts and drops no caption: leave caption_dropout out.")
        self.reward = reward.eval().requires_grad_(False)
        self.advantage = advantage or PerPrompt()
        self.takes_several_rewards = self.advantage.takes_several_rewards
        self.samples_per_prompt, self.inner_epochs = samples_per_prompt, inner_epochs
        self.max_advantage = max_advantage

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.noise_group_size > 1 and self.rollout.forgets_noise(self.policy):
            raise ValueError(
                f"{type(self).__name__} starts {self.noise_group_size} samples from the same noise, and the first step "
                f"of {type(self.rollout.transition).__name__} replaces it wholly on this policy: use FlowSDE or CPS."
            )

    @abstractmethod
    def loss(self, step: StepBatch) -> Tensor:
        """The method's equation: (M / group_size,) from M denoising steps."""

    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        """Trajectories, and the advantage of each trajectory (N,) or of each step (N, T)."""
        rows = repeat_rows(batch, self.samples_per_prompt)
        trajectory, states = self.draw_trajectories(rows)
        keys = self.policy.keys(rows["prompt"], rows["columns"])
        return trajectory, self.advantages(keys, self.rewards_of(states, rows))

    def draw_trajectories(
        self, rows: dict, hooks: Sequence[Hook] = (), leaves: int = 1
    ) -> tuple[Trajectory, list[State]]:
        """N trajectories and the sampler's final states, `minibatch` samples at a time; `leaves`: samples that a hook
        makes of each row."""
        if self.samples_per_prompt % self.group_size:
            raise ValueError(
                f"samples_per_prompt is {self.samples_per_prompt}; {type(self).__name__} compares {self.group_size} "
                f"trajectories of a prompt: give a multiple of {self.group_size}."
            )
        prompts, batch_size = rows["prompt"], max(1, self.minibatch // leaves)
        x = torch.randn(len(prompts) // self.noise_group_size, *self.policy.latent_shape, device=self.device)
        x, states = x.repeat_interleave(self.noise_group_size, 0), []
        for part in torch.arange(len(prompts)).split(batch_size):
            part_rows = select_rows(rows, part.tolist())
            columns = part_rows["columns"]
            states.append(
                self.rollout(self.policy, part_rows["prompt"], columns=columns, x=x[part], hooks=hooks, record=True)
            )
        return Trajectory.cat([state.trajectory for state in states]), states

    @torch.no_grad()
    def rewards_of(self, states: list[State], rows: dict) -> Tensor:
        """Rewards (N,) of the final samples of rollouts."""
        x_0 = torch.cat([state.x for state in states])
        return self.log_reward(self.judge(self.reward, x_0, rows, self.minibatch), rows["prompt"])

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        """This rank's advantages (N,), from the statistics of all ranks' samples."""
        return local_advantages(self, prompts, reward)

    def optimizer_steps(self, collected: tuple[Trajectory, Tensor]) -> Iterator[list[dict]]:
        """Each optimizer step trains all denoising steps of its share of the trajectories."""
        trajectory, advantage = collected
        steps = self.trained_steps(trajectory)
        advantage = advantage.view(len(advantage), -1).expand_as(trajectory.t)
        groups = torch.arange(len(advantage)).view(-1, self.group_size)
        for _ in range(self.inner_epochs):
            for part in self.shares(len(groups)):
                yield self.update(trajectory, advantage, groups[part], steps)

    def update(
        self, trajectory: Trajectory, advantage: Tensor, groups: Tensor, steps: Tensor, reference: bool = True
    ) -> list[dict]:
        """Minibatches of one optimizer step: the given steps of trajectory groups (G, group_size), with advantages (N,
        T, ...). `reference`: False if `loss` does not need the reference."""
        parts = list(self.minibatches(groups, steps))
        share = self.group_size / sum(len(rows) for rows, _ in parts)
        shared = {"trajectory": trajectory, "advantage": advantage, "share": share, "reference": reference}
        return [shared | {"rows": rows, "steps": i, "prompt": self.prompts(trajectory, rows)} for rows, i in parts]

    @staticmethod
    def prompts(trajectory: Trajectory, rows: Tensor) -> list[str]:
        return [trajectory.prompts[i] for i in rows.tolist()] if trajectory.prompts else []

    def batch_loss(self, m: dict) -> Tensor:
        step = self.evaluate(m["trajectory"], m["advantage"], m["rows"], m["steps"], m["reference"])
        return self.loss(step).sum() * m["share"]

    @torch.no_grad()
    def every_step(
        self, trajectory: Trajectory, groups: Tensor, steps: Tensor, *functions: Callable[[StepBatch], Tensor]
    ) -> list[Tensor]:
        """Values (N, T) of functions of a StepBatch, (M,) each, at the given steps, without gradient; 0 elsewhere.
        First pass of objectives over whole trajectories: the objective's derivatives in these values are the weights of
        the second pass."""
        results = [torch.zeros_like(trajectory.log_prob) for _ in functions]
        for rows, i in self.minibatches(groups, steps):
            step = self.evaluate(trajectory, trajectory.log_prob, rows, i)
            for values, function in zip(results, functions):
                values[rows, i] = function(step)
        return results

    def minibatches(self, groups: Tensor, steps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Trajectory rows and steps, (M,) each, in random order; the rows of a group stay together."""
        cells = torch.cartesian_prod(torch.arange(len(groups)), steps).view(-1, 2)
        for part in cells[torch.randperm(len(cells))].split(max(1, self.minibatch // self.group_size)):
            yield groups[part[:, 0]].flatten(), part[:, 1].repeat_interleave(self.group_size)

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        """Indices of the denoising steps that are trained: those with noise, which have a likelihood."""
        steps = (trajectory.log_prob[0] != 0).nonzero().flatten().cpu()
        if not len(steps):
            raise ValueError(
                f"{type(self).__name__} learns from the likelihood of noisy steps, and the rollout has none: give it a "
                "transition with noise, such as DDIM with eta 1, or FlowSDE."
            )
        return steps

    def gaussian(self, m: dict) -> Gaussian:
        """p(x_s | x_t, c) of a minibatch under the active weights, by the same code and steering as in the rollout."""
        return self.rollout.gaussian(self.policy, m["x_t"], m["t"], m["s"], m["cond"])[0]

    def evaluate(
        self, trajectory: Trajectory, advantage: Tensor, rows: Tensor, steps: Tensor, reference: bool = True
    ) -> StepBatch:
        """Steps (M,) of trajectory rows (M,) under the current policy; `advantage` holds all steps (N, T, ...)."""
        m = trajectory.minibatch(rows, steps)
        gaussian, ref = self.gaussian(m), None
        if self.uses_reference and reference:
            with torch.no_grad(), self.policy.reference():
                ref = self.gaussian(m)
        step = StepBatch(
            gaussian=gaussian,
            log_prob=gaussian.log_prob(m["x_s"]),
            old_log_prob=m["log_prob"],
            old_mean=m["mean"],
            advantage=advantage[rows, steps],
            **{k: m[k] for k in ("x_t", "x_s", "t", "s", "cond")},
            reference=ref,
            rows=rows,
        )
        with torch.no_grad():
            self.log_mean("train/ratio", step.ratio.mean(), len(rows))
            self.log_mean("train/approx_kl", 0.5 * (step.log_prob - step.old_log_prob).square().mean(), len(rows))
        return step
