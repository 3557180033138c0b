"""TempFlow-GRPO: samples that differ in the noise of one step alone tell what that step is worth."""

import copy
import math
from dataclasses import fields, replace

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.parts.advantages import local_advantages
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, Trajectory, concatenate, select_rows
from lit_align.diffusion.transition import Windowed


class TempFlowGRPO(FlowGRPO):
    """He et al. 2025, arXiv 2508.04324, and its authors' answers: from each of samples_per_prompt / branches initial
    noises a deterministic path; at each of its steps but the last, `branches` noisy steps from the same x_t, each
    followed by deterministic ones. The branches of one x_t are a group (the paper's seed group): the advantage is that
    step's alone. A step's loss is weighted by its noise, std / mean std over the trained steps: early steps explore
    more.

    Sampling takes about T / 2 times as many network calls as Flow-GRPO's, and gives T - 1 groups for each noise.

    Args:
        branches: K, samples of one x_t.
    """

    def __init__(self, branches: int = 6, samples_per_prompt: int = 24, **kwargs):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.branches = branches
        if self.window or self.noise_group_size > 1:
            raise ValueError("TempFlowGRPO has a window and initial noises of its own: leave window and shared_noise.")
        if branches < 2 or samples_per_prompt % branches:
            raise ValueError(
                f"samples_per_prompt is {samples_per_prompt} and branches {branches}: give 2 branches or more, and a "
                "multiple of them."
            )

    def sampler_at(self, step: int | None) -> Sampler:
        """The rollout with noise at one step alone; None: at none."""
        sampler = copy.copy(self.rollout)
        sampler.transition = Windowed(self.rollout.transition)
        time = math.inf if step is None else self.rollout.timesteps(self.policy)[step].item()
        sampler.transition.low = sampler.transition.high = time
        return sampler

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        seeds, k = repeat_rows(batch, self.samples_per_prompt // self.branches), self.branches
        parts, states, rows, groups = [], [], [], []
        for part in torch.arange(len(seeds["prompt"])).split(max(1, self.minibatch // k)):
            own = select_rows(seeds, part.tolist())
            x = torch.randn(len(part), *self.policy.latent_shape, device=self.device)
            trunk = self.sampler_at(None)(
                self.policy, own["prompt"], columns=own["columns"], x=x, record=True
            ).trajectory
            branched = repeat_rows(own, k)
            cond = self.policy.condition(branched["prompt"], branched["columns"])
            for i in range(self.rollout.steps - 1):
                start = trunk.x_t[:, i].to(self.device).repeat_interleave(k, 0)
                state = State(start, cond, branched["prompt"], branched["columns"])
                states.append(self.sampler_at(i).run(self.policy, state, record=True, first=i))
                parts.append(first_step(states[-1].trajectory))
                rows.append(branched)
                groups += [f"{p} {row} {i}" for row, p in zip(part.tolist(), own["prompt"]) for _ in range(k)]
        reward = self.rewards_of(states, concatenate(rows))
        return Trajectory.cat(parts), local_advantages(self, groups, reward)

    def surrogate(self, step: StepBatch) -> Tensor:
        std = self.rollout.step_std(self.policy)[:-1].mean()
        return super().surrogate(step) * step.gaussian.std.flatten(1)[:, 0] / std


def first_step(trajectory: Trajectory) -> Trajectory:
    """The first step of a recorded rollout, as a rollout of one step."""
    recorded = {f.name: getattr(trajectory, f.name) for f in fields(trajectory) if f.name not in ("cond", "prompts")}
    return replace(trajectory, **{name: value[:, :1] for name, value in recorded.items()})
