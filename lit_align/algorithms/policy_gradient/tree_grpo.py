"""TreeGRPO: a tree of samples with noise at the splits alone; a node's advantage is the mean of its leaves'."""

from torch import Tensor

from lit_align.algorithms.policy_gradient.branch_grpo import BranchGRPO, Tree
from lit_align.diffusion.transition import DDIM


class FrozenTree(Tree):
    """A Tree whose steps between the splits are deterministic."""

    def transition(self, policy, state, sampler):
        if state.i in self.splits:
            return super().transition(policy, state, sampler)
        return DDIM(0.0)(policy.process, state.x, state.x0, state.eps, state.t, state.s)


class TreeGRPO(BranchGRPO):
    """Ding & Ye 2025, arXiv 2512.08153: a prompt's samples are the leaves of a tree; steps at `splits` are noisy and
    every node there has `branching` children, all others are deterministic. A leaf's advantage is (reward - mean) / std
    over the prompt's leaves; every node above has the mean of its children's, and DDPO's loss trains the noisy steps.
    (BranchGRPO normalises each depth anew. The paper's weights of a node's children: unverified; here all count the
    same.)

    Args:
        splits: the noisy steps.
        branching: children of a node at a split: branching^len leaves per prompt.
    """

    def __init__(self, splits: tuple[int, ...] = (0, 1, 2), branching: int = 3, clip_range: float = 1e-4, **kwargs):
        if branching < 2:
            raise ValueError(f"branching is {branching}: give 2 or more.")
        self.branching = branching
        super().__init__(splits=splits, clip_range=clip_range, **kwargs)

    def tree(self) -> Tree:
        return FrozenTree(self.splits, self.split_noise, self.branching)

    def node_advantages(self, reward: Tensor, nodes: int) -> Tensor:
        return super().node_advantages(reward, reward.shape[1]).unflatten(1, (nodes, -1)).mean(2)
