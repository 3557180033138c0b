"""BranchGRPO: a prompt's samples are the leaves of a tree; a step's advantage comes from the leaves below it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.state import Trajectory


class Tree(Hook):
    """Splits every particle in `branching` at the given steps; each draws its own noise, `noise` times as large."""

    def __init__(self, splits: tuple[int, ...], noise: float = 1.0, branching: int = 2):
        self.splits, self.noise, self.branching = splits, noise, branching

    def transition(self, policy, state, sampler):
        if state.i in self.splits:
            state.reindex(torch.arange(len(state.x)).repeat_interleave(self.branching))
        return super().transition(policy, state, sampler)

    def propose(self, policy, state, gaussian):
        x_s = super().propose(policy, state, gaussian)
        return gaussian.mean + self.noise * (x_s - gaussian.mean) if state.i in self.splits else x_s


class BranchGRPO(DDPO):
    """Li et al. 2025, arXiv 2509.06040: a prompt's rollouts share their first steps. A node's reward is the mean of its
    leaves' rewards; its advantage is (reward - mean) / std over the prompt's nodes of the same depth, 0 if they are
    equal. DDPO's loss is applied to every node once. As released, the likelihood at a split ignores `split_noise`.

    Args:
        splits: steps at which every particle splits in two: 2^len leaves per prompt.
        clip_range: half-width of the ratio's clipping interval.
        split_noise: factor of the noise at splits; 4 as released, for FLUX and DanceSDE(0.3).
        prune: after the last split, train on each prompt's best and worst leaf only (pruning by width).
        skip: successive steps that are not trained (pruning by depth).
        slide_every: training steps after which `skip` moves one step towards the last split, where it stays; 0: never.
    """

    uses_advantage = takes_masked_rewards = False
    branching = 2  # children of a node at a split

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
            raise ValueError("BranchGRPO trains on whole trees: set samples_per_prompt and updates to 1, and splits.")
        self.splits = tuple(splits)
        self.split_noise, self.prune, self.skip, self.slide_every = split_noise, prune, tuple(skip), slide_every
        self.leaves = self.branching ** len(self.splits)

    def nodes(self, step: int) -> int:
        """Number of nodes of a prompt's tree at a step."""
        return self.branching ** sum(split <= step for split in self.splits)

    def tree(self) -> Tree:
        """The hook that splits."""
        return Tree(self.splits, self.split_noise, self.branching)

    def node_advantages(self, reward: Tensor, nodes: int) -> Tensor:
        """Advantages (prompts, nodes) of the nodes of one depth, from the rewards (prompts, leaves) of all leaves."""
        node = reward.unflatten(1, (nodes, -1)).mean(2)
        mean, std = node.mean(1, keepdim=True), node.std(1, keepdim=True)  # std is nan for one node: advantage 0
        return torch.where(std > 1e-6, (node - mean) / std.clamp(min=1e-6), 0.0)

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        trajectory, states = self.draw_trajectories(repeat_rows(batch, 1), (self.tree(),), self.leaves)
        k = self.leaves
        reward = self.rewards_of(states, repeat_rows(batch, k)).view(-1, k)  # (prompts, leaves)
        advantages = []
        for i in range(self.rollout.steps):
            advantage = self.node_advantages(reward, self.nodes(i))
            advantages.append(advantage.repeat_interleave(k // self.nodes(i), 1).flatten())
        self.kept = torch.ones(len(reward), k, dtype=torch.bool)  # leaves that are trained
        if self.prune:
            extremes = torch.stack([reward.argmax(1), reward.argmin(1)], 1).cpu()
            self.kept = torch.zeros_like(self.kept).scatter(1, extremes, True)
        return trajectory, torch.stack(advantages, 1).clamp(-self.max_advantage, self.max_advantage)

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        steps = super().trained_steps(trajectory)
        if not self.skip:
            return steps
        shift = self.batch_number // self.slide_every if self.slide_every else 0
        shift = min(shift, max(0, min(self.skip) - max(self.splits)))
        return steps[~torch.isin(steps, torch.tensor(self.skip) - shift)]

    def minibatches(self, groups: Tensor, steps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Every node once, by its first leaf; the same number of minibatches on every rank."""
        cells, minimum = [], 0  # nodes of the smallest trees, whose best leaf is also the worst
        for i in steps.tolist():
            pruned, leaves = self.prune and i > max(self.splits), self.leaves // self.nodes(i)
            rows = self.kept.flatten().nonzero().flatten() if pruned else torch.arange(0, self.kept.numel(), leaves)
            cells += [(row, i) for row in rows.tolist()]
            minimum += len(self.kept) * (1 if pruned else self.nodes(i))
        shuffled = torch.tensor(cells)[torch.randperm(len(cells))]
        for part in shuffled.tensor_split(-(-minimum // self.minibatch)):
            yield part[:, 0], part[:, 1]
