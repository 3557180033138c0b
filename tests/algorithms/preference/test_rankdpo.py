"""RankDPO's gains, ranks and weights."""

import math

import pytest
import torch
from parts import T
from preferences import ranked

from lit_align.algorithms.preference.rankdpo import RankDPO
from lit_align.algorithms.preference.ranking import lambdas, ranks


def test_rankdpo_weights(policy):
    phi = T([[0.9, 0.6, 0.35, 0.15]], dtype=torch.float64)
    delta = lambdas(2**phi - 1, ranks(phi))[0]
    expected = {(0, 1): 0.18655, (0, 2): 0.42668, (0, 3): 0.62136, (1, 2): 0.04555, (1, 3): 0.11734, (2, 3): 0.01650}
    for (i, j), value in expected.items():
        assert delta[i, j].item() == pytest.approx(value, abs=1e-5)
    assert math.log(2) * sum(delta[i, j].item() for i, j in expected) == pytest.approx(0.98009, abs=1e-5)


def test_rankdpos_phi_counts_wins_over_rewards_ties_half(policy):
    scores = T([[[1.0, 0.0], [0.0, 0.0], [2.0, -1.0]]])  # (1, 3, 2)
    assert RankDPO(policy=policy).phi(scores)[0].tolist() == pytest.approx([(1 + 1.5) / 4, (0 + 1.5) / 4, (2 + 0) / 4])


def test_rankdpo_of_two_is_gain_weighted_dpo(policy):
    r = ranked([0.2, -0.1], [1.0, 0.0])
    weight = (2**1 - 1) * (1 / math.log(2) - 1 / math.log(3))
    assert RankDPO(policy=policy, beta=2.0).loss(r).item() == pytest.approx(weight * math.log1p(math.exp(-0.6)), abs=1e-8)


def test_rankdpo_of_three_weighs_each_pair_by_its_gains_and_places(policy):
    """Gains 2^phi - 1 of phi 0.5, 1, 0, by hand; with two images alone every gain is 1 or 0."""
    h = [0.2, -0.1, 0.3]
    got = RankDPO(policy=policy, beta=2.0).loss(ranked(h, [1.0, 2.0, 0.0])).item()
    gain, place = [2**0.5 - 1, 1.0, 0.0], [1 / math.log(3), 1 / math.log(2), 1 / math.log(4)]
    pairs = [(1, 0), (1, 2), (0, 2)]  # better, worse
    want = sum((gain[i] - gain[j]) * (place[i] - place[j]) * math.log1p(math.exp(-2 * (h[i] - h[j]))) for i, j in pairs)
    assert got == pytest.approx(want, abs=1e-8)
