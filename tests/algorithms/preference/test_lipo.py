"""LiPO's weights."""

import math

import pytest
from preferences import ranked

from lit_align.algorithms.preference.lipo import LiPO


def test_lipo_ranks_by_the_policy_and_weighs_without_gradient(policy):
    r = ranked([0.1, 0.4, -0.2], [2.0, 0.0, 1.0])  # the policy's order: 1, 0, 2
    rank, u, y = [2, 1, 3], [0.3, 1.2, -0.6], [2, 0, 1]
    expected = sum(
        abs(2 ** y[i] - 2 ** y[j]) * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j])) * math.log1p(math.exp(-(u[i] - u[j])))
        for i, j in ((0, 1), (0, 2), (2, 1))
    )
    assert LiPO(policy=policy, beta=3.0).loss(r).item() == pytest.approx(expected, abs=1e-6)
