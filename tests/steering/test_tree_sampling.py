import math

import pytest
import torch
from mixture import Mixture, tilted
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.steering import tree_sampling
from lit_align.steering.tree_sampling import Node, TreeSampling

INSIDE, SEEDS = Sampler(6, 1.0, DDIM(1.0)), [3, 4, 5]


def grown(search, policy=None, seeds=SEEDS):
    """The result, and the trees' roots."""
    roots, node = [], tree_sampling.Node

    class Rooted(node):
        def __init__(self, i, *args):
            super().__init__(i, *args)
            if i < 0:
                roots.append(self)

    tree_sampling.Node = Rooted
    try:
        return search(policy or Analytic(), [""] * len(seeds), seeds=list(seeds)), roots
    finally:
        tree_sampling.Node = node


def nodes(root):
    yield root
    for child in root.children:
        yield from nodes(child)


@pytest.mark.parametrize("mode", ["search", "sample"])
def test_a_tree_is_consistent(mode):
    n, lmbda = 12, 3.0
    state, roots = grown(TreeSampling(Level(), n, lmbda, mode, sampler=INSIDE))
    for p, root in enumerate(roots):
        assert root.visits == n
        for node in nodes(root):
            assert all(child.i == node.i + 1 and child.parent is node for child in node.children)
            if node.i == 6:
                assert node.value == pytest.approx(node.x.mean().item(), abs=1e-6) and not node.children
            else:  # the soft Bellman backup, and visits
                soft = math.log(sum(math.exp(lmbda * c.value) for c in node.children) / len(node.children)) / lmbda
                assert node.value == pytest.approx(soft, abs=1e-6)
                assert node.visits == sum(c.visits for c in node.children) and len(node.children) <= max(1, int(node.visits**0.5))
        leaves = [node for node in nodes(root) if node.i == 6]
        if mode == "search":
            assert state.x[p].mean().item() == pytest.approx(max(leaf.value for leaf in leaves), abs=1e-6)
        assert any(torch.equal(state.x[p], leaf.x) for leaf in leaves)
    assert state.calls["nfe_forward"] < 6 * n


def test_a_node_whose_step_has_no_noise_has_one_child():
    search = TreeSampling(Level(), 30, 3.0, sampler=INSIDE)
    noisy = (INSIDE.step_std(Analytic()) > 0).tolist()
    assert noisy == [True] * 5 + [False]
    assert [search.room(Node(i, visits=9), noisy) for i in (-1, 0, 4, 5)] == [3, 3, 3, 1]
    _, roots = grown(search, seeds=[3])
    assert all(len(node.children) == 1 for root in roots for node in nodes(root) if node.i == 5)


def test_the_first_rollout_is_the_plain_sample():
    state = TreeSampling(Level(), 1, sampler=INSIDE)(Analytic(), [""] * 3, seeds=SEEDS)
    assert torch.equal(state.x, INSIDE(Analytic(), [""] * 3, seeds=SEEDS).x)


def test_search_takes_the_child_with_the_largest_upper_bound():
    root = Node(-1, visits=10)
    for value, visits in ((1.0, 8), (0.5, 1), (0.6, 1)):
        root.children.append(Node(0, None, root, [], value, visits))
    one = TreeSampling(Level(), exploration=0.1, sampler=INSIDE, widening=(1.0, 0.0))
    far = TreeSampling(Level(), exploration=1.0, sampler=INSIDE, widening=(1.0, 0.0))
    noisy = [True] * 6
    assert one.select(root, None, noisy).value == 1.0 and far.select(root, None, noisy).value == 0.6


def test_samples_of_large_trees_follow_the_tilted_mixture():
    inside, lmbda, n = Sampler(3, 1.0, DDIM(1.0)), 1.0, 40
    torch.manual_seed(0)
    plain = inside(Mixture(), [""] * 20000).x.flatten()
    state = TreeSampling(Level(), n, lmbda, "sample", widening=(2.0, 0.8), sampler=inside)(Mixture(), [""] * 200, seeds=list(range(200)))
    mean, above = tilted(plain, lmbda)
    assert state.x.mean().item() == pytest.approx(mean, abs=0.15)
    assert (state.x > 0).float().mean().item() == pytest.approx(above, abs=0.09)
    assert mean - plain.mean().item() > 0.3


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="TreeSampling branches at steps with noise, and this sampler's have none"):
        TreeSampling(Level(), sampler=Sampler(6, 1.0))(Analytic(), [""])
    with pytest.raises(ValueError, match="lmbda greater than 0"):
        TreeSampling(Level(), lmbda=0.0)
