"""BOND's weights against all draws of n."""

from itertools import product

import torch
from parts import T
from preferences import still
from weighted import make

from lit_align.algorithms.reward_weighted.bond import BOND
from lit_align.algorithms.reward_weighted.human_feedback import RewardWeighted


def test_bonds_weights_are_the_law_of_the_best_of_n_draws():
    """Against all n-tuples of a prompt's samples, drawn with replacement; samples alike share what they win."""
    reward = T([[0.3, 0.1, 0.7, 0.3], [2.0, 1.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    for n in (1, 2, 3):
        want = torch.zeros_like(reward)
        for row, r in enumerate(reward.tolist()):
            for drawn in product(range(4), repeat=n):
                best = max(r[i] for i in drawn)
                winners = [i for i in range(4) if r[i] == best]
                want[row, winners] += 1 / len(winners) / 4**n
        torch.testing.assert_close(make(BOND, still(), n=n).weights(reward), 4 * want)
    many = torch.rand(1, 400)
    shares = (many <= many.view(-1, 1)).float().mean(1)
    torch.testing.assert_close(make(BOND, still(), n=3).weights(many)[0], 3 * shares.square(), atol=0.03, rtol=0)


def test_bonds_anchor_moves():
    assert make(BOND, still()).moves_reference and not make(RewardWeighted, still()).moves_reference
