"""Diffusion tree sampling and search: rewards of finished samples are backed up along the steps that led to them."""

import math
from dataclasses import dataclass, field
from typing import Literal, Optional

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import rand
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import OuterSampler


@dataclass(eq=False)
class Node:
    """A noisy sample before step i (i = steps: a finished one; i = -1: the root, from which x_T is drawn)."""

    i: int
    x: Tensor | None = None  # on the CPU
    parent: Optional["Node"] = None
    children: list["Node"] = field(default_factory=list)
    value: float = 0.0  # soft value; of a finished sample its reward
    visits: int = 0


class TreeSampling(OuterSampler):
    """Jain et al. 2025, arXiv 2506.20701. Each prompt has a tree whose root has noises x_T as children, and in which a
    node x_t has draws of x_s ~ p(x_s | x_t). A rollout

    1. goes down from the root, as long as a node has max(1, C visits^a) children,
    2. draws a further child there and from it a finished sample, all of whose steps join the tree,
    3. backs its reward up: v(x_t) = log mean_children exp(lambda v(x_s)) / lambda.

    Sampling (DTS) goes down to a child with probability ~ exp(lambda v), and at the end draws a finished sample so: as
    rollouts grow, from p(x_0 | c) exp(lambda r). Search (DTS*) goes to the child with the largest v + exploration
    sqrt(log visits / visits of the child), and returns the best sample.

    By the abstract and the project page; the widening, exploration and their numbers are our reading (unverified).

    Args:
        reward: r.
        n: rollouts, at most: with `max_nfe`, as many as it allows a prompt. One that begins further down is cheaper.
        lmbda: lambda, in 1/reward.
        mode: search or sample.
        exploration: of search, in units of the reward.
        widening: C and a.
        sampler: its steps, with noise (default: 50 DDIM steps, guidance 7.5).
    """

    needs_steps = True

    def __init__(
        self,
        reward: Reward,
        n: int = 16,
        lmbda: float = 10.0,
        mode: Literal["search", "sample"] = "search",
        exploration: float = 1.0,
        widening: tuple[float, float] = (1.0, 0.5),
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, sampler, max_nfe)
        if n < 1 or lmbda <= 0:
            raise ValueError(f"TreeSampling: n is 1 or more and lmbda greater than 0; got {n} and {lmbda}.")
        self.n, self.lmbda, self.mode, self.exploration, self.widening = n, lmbda, mode, exploration, widening

    def check(self, policy):
        if not self.sampler.step_std(policy)[:-1].any():
            raise ValueError(
                "TreeSampling branches at steps with noise, and this sampler's have none: give it a transition with "
                "noise (DDIM with eta 1, FlowSDE), or use BestOfN."
            )

    def room(self, node: Node, noisy: list[bool]) -> int:
        """How many children a node may have: one where its step has no noise."""
        c, a = self.widening
        return max(1, int(c * node.visits**a)) if node.i < 0 or noisy[node.i] else 1

    def select(self, node: Node, generator: torch.Generator | None, noisy: list[bool] | None = None) -> Node:
        """The node at which a rollout begins, by the steps that have noise; without them, a finished sample."""
        while node.i < self.steps and (noisy is None or len(node.children) >= self.room(node, noisy)):
            values = torch.tensor([child.value for child in node.children], dtype=torch.double)
            if self.mode == "sample":
                cumulative = (self.lmbda * values).softmax(0).cumsum(0)
                u = rand(1, generator and [generator]).double()
                pick = int(torch.searchsorted(cumulative, u).clamp(max=len(values) - 1))
            else:
                visits = torch.tensor([child.visits for child in node.children], dtype=torch.double)
                pick = int((values + self.exploration * (math.log(max(node.visits, 1)) / visits).sqrt()).argmax())
            node = node.children[pick]
        return node

    def back_up(self, node: Node) -> None:
        """From a finished sample to the root."""
        node.visits += 1
        while node := node.parent:
            values = torch.tensor([child.value for child in node.children], dtype=torch.double)
            node.value = float(((self.lmbda * values).logsumexp(0) - math.log(len(values))) / self.lmbda)
            node.visits += 1

    def search(self, policy, start, hooks, budget):
        roots, spent = [Node(-1) for _ in start.x], [0.0] * len(start.x)
        noisy = (self.sampler.step_std(policy) > 0).tolist()
        leaves: list[list[Node]] = [[] for _ in roots]
        streams = self.start(start, self.n).generators or [None] * len(roots)  # of the choices
        for k in range(self.n):
            begin: dict[int, list[tuple[int, Node]]] = {}
            for p, root in enumerate(roots):
                node = self.select(root, streams[p], noisy)
                cost = self.sampler.nfe(max(node.i, 0), None, hooks) if node.i < self.steps else 0.0
                if not budget.allows(cost, spent[p]):
                    continue
                spent[p] += cost
                if node.i == self.steps:
                    self.back_up(node)
                else:
                    begin.setdefault(node.i, []).append((p, node))
            for i, chosen in begin.items():
                for (p, _), leaf in zip(chosen, self.roll_out(policy, start, hooks, k, i, chosen)):
                    leaves[p].append(leaf)
        if self.mode == "sample":
            best = [self.select(root, stream) for root, stream in zip(roots, streams)]
        else:
            best = [max(found, key=lambda leaf: leaf.value) for found in leaves]
        x = torch.stack([leaf.x for leaf in best]).to(start.x)
        return self.result(start, x, start.x.new_tensor([leaf.value for leaf in best]))

    def roll_out(self, policy, start, hooks, k: int, i: int, chosen: list[tuple[int, Node]]) -> list[Node]:
        """Finished samples from nodes before step i, one for each (prompt, node)."""
        rows = torch.tensor([p for p, _ in chosen], device=start.x.device)
        state, nodes = self.start(start.part(rows), k), [node for _, node in chosen]
        if i >= 0:
            state.x = torch.stack([node.x for node in nodes]).to(start.x)
        for step in range(i, self.steps):
            if step >= 0:
                state = self.sampler.run(policy, state, hooks, first=step, last=step + 1)
            nodes = [Node(step + 1, x, node) for x, node in zip(state.x.cpu(), nodes)]
            for node in nodes:
                node.parent.children.append(node)
        for node, reward in zip(nodes, self.score(policy, state).tolist()):
            node.value = reward
            self.back_up(node)
        return nodes
