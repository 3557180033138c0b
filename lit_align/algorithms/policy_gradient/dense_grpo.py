"""DenseGRPO: a step's reward is what it adds to the reward of where the deterministic path from it leads."""

import copy

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.parts.advantages import local_advantages
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.diffusion.state import State, Trajectory, select_rows
from lit_align.diffusion.transition import DDIM


class DenseGRPO(FlowGRPO):
    """Deng et al. 2026, arXiv 2601.20218: Flow-GRPO with the dense reward R(x_s) - R(x_t) of a step from x_t to x_s,
    R(x_t) the reward of the x_0 that the rollout's remaining steps reach from x_t without noise. Advantages are those
    of a prompt's samples at the same step.

    A rollout of T steps takes about T^2 / 2 more network calls and T rewards for each sample. (The paper also adapts
    each step's noise level to the rewards; here it is the transition's. Its details: unverified.)
    """

    takes_masked_rewards = False  # differences of rewards need them all

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.takes_several_rewards:
            raise ValueError("DenseGRPO takes differences of one reward: put several into a WeightedSum.")

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        rows = repeat_rows(batch, self.samples_per_prompt)
        trajectory, states = self.draw_trajectories(rows)
        before = [self.judge(self.reward, x, rows, self.minibatch) for x in self.ends(trajectory, rows)]
        reward = torch.stack([*before, self.rewards_of(states, rows)], 1)  # (N, T + 1)
        gains = (reward[:, 1:] - reward[:, :-1]).unbind(1)
        keys = self.policy.keys(rows["prompt"], rows["columns"])
        names = [[f"{key} {k}" for key in keys] for k in range(len(gains))]
        return trajectory, torch.stack([local_advantages(self, n, gain) for n, gain in zip(names, gains)], 1)

    def ends(self, trajectory: Trajectory, rows: dict):
        """Yields, for each step of the trajectories, the x_0 (N, ...) that its x_t leads to without noise."""
        sampler = copy.copy(self.rollout)
        sampler.transition = DDIM(0.0)
        for i in range(trajectory.t.shape[1]):
            parts = []
            for part in torch.arange(len(trajectory.t)).split(self.minibatch):
                cond = select_rows(trajectory.cond, part.tolist())
                own = select_rows(rows, part.tolist())
                state = State(trajectory.x_t[part, i].to(self.device), cond, own["prompt"], own["columns"])
                parts.append(sampler.run(self.policy, state, first=i).x)
            yield torch.cat(parts)
