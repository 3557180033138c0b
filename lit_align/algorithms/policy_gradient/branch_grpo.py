"""BranchGRPO: a prompt's samples are the leaves of a tree, and every step is judged by the leaves below it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.state import Trajectory


class Tree(Hook):
    """Every particle becomes two, which draw their own noise, `noise` times as large, at the given steps."""

    def __init__(self, splits: tuple[int, ...], noise: float = 1.0):
        self.splits, self.noise = splits, noise

    def predict(self, policy, state, sampler):
        super().predict(policy, state, sampler)
        if state.i in self.splits:
            state.reindex(torch.arange(len(state.x)).repeat_interleave(2))

    def propose(self, policy, state, gaussian):
        x_s = super().propose(policy, state, gaussian)
        return gaussian.mean + self.noise * (x_s - gaussian.mean) if state.i in self.splits else x_s


class BranchGRPO(DDPO):
    """Li et al. 2025, arXiv 2509.06040: rollouts share their beginnings; a node's reward is the mean of its leaves',
    its advantage (reward - mean) / std over the prompt's nodes of the same depth, 0 where they are alike; DDPO's loss
    on every node once. As released, the likelihood is the plain step's where the tree splits with more noise.

    Args:
        splits: the steps at which every particle becomes two: 2^len leaves for each prompt.
        clip_range: half the width of the ratio's band.
        split_noise: factor of the noise where the tree splits; 4 as released, for FLUX and DanceSDE(0.3).
        prune: after the last split learn from each prompt's best and worst leaf alone (pruning by width).
        skip: successive steps that are not learnt from (pruning by depth).
        slide_every: training steps after which `skip` moves one step towards the last split, where it stays; 0: never.
    """

    def __init__(
        self,
        splits: tuple[int, ...] = (0, 3, 6, 9),
        clip_range: float = 1e-3,
        split_noise: float = 1.0,
        prune: bool = False,
        skip: tuple[int, ...] = (),
        slide_every: int = 0,
        **kwargs,
    ):
        super().__init__(clip_range=clip_range, **kwargs)
        if self.samples_per_prompt != 1 or self.updates != 1:
            raise ValueError("BranchGRPO learns from whole trees: set splits, and samples_per_prompt and updates to 1.")
        self.splits = tuple(splits)
        self.split_noise, self.prune, self.skip, self.slide_every = split_noise, prune, tuple(skip), slide_every
        self.leaves = 2 ** len(self.splits)

    def nodes(self, step: int) -> int:
        """Nodes of a prompt's tree at a step."""
        return 2 ** sum(split <= step for split in self.splits)

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        tree = Tree(self.splits, self.split_noise)
        trajectory, states = self.draw_trajectories(repeat_rows(batch, 1), (tree,), self.leaves)
        k = self.leaves
        reward = self.rewards_of(states, repeat_rows(batch, k)).view(-1, k)  # (prompts, leaves)
        columns = []
        for i in range(self.rollout.steps):
            node = reward.unflatten(1, (self.nodes(i), -1)).mean(2)  # (prompts, nodes)
            mean, spread = node.mean(1, keepdim=True), node.std(1, keepdim=True)  # nan of one node: no advantage
            scaled = torch.where(spread > 1e-6, (node - mean) / spread.clamp(min=1e-6), 0.0)
            columns.append(scaled.repeat_interleave(k // self.nodes(i), 1).flatten())
        self.kept = torch.ones(len(reward), k, dtype=torch.bool)  # leaves that are learnt from
        if self.prune:
            best = torch.stack([reward.argmax(1), reward.argmin(1)], 1).cpu()
            self.kept = torch.zeros_like(self.kept).scatter(1, best, True)
        return trajectory, torch.stack(columns, 1).clamp(-self.max_advantage, self.max_advantage)

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        steps = super().trained_steps(trajectory)
        if not self.skip:
            return steps
        moved = self.batch_number // self.slide_every if self.slide_every else 0
        moved = min(moved, max(0, min(self.skip) - max(self.splits)))
        return steps[~torch.isin(steps, torch.tensor(self.skip) - moved)]

    def minibatches(self, groups: Tensor, steps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Every node once, by the first of its leaves; as many parts on every rank."""
        cells, least = [], 0  # least: what every tree has, as one whose best is its worst keeps a single leaf
        for i in steps.tolist():
            pruned, below = self.prune and i > max(self.splits), self.leaves // self.nodes(i)
            rows = self.kept.flatten().nonzero().flatten() if pruned else torch.arange(0, self.kept.numel(), below)
            cells += [(row, i) for row in rows.tolist()]
            least += len(self.kept) * (1 if pruned else self.nodes(i))
        shuffled = torch.tensor(cells)[torch.randperm(len(cells))]
        for part in shuffled.tensor_split(-(-least // self.minibatch)):
            yield part[:, 0], part[:, 1]
