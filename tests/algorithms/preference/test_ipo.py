"""DiffusionIPO against hand numbers."""

import pytest
from preferences import at, pair

from lit_align.algorithms.preference.ipo import DiffusionIPO


@pytest.mark.parametrize("gap,expected", [(1.0, 0.0), (0.0, 1.0), (-0.5, 2.25)])
def test_given_errors(policy, gap, expected):
    assert DiffusionIPO(policy=policy, beta=1.0).loss(at(gap)).item() == pytest.approx(expected, abs=1e-8)


def test_the_margin_is_one_over_beta(policy):
    assert DiffusionIPO(policy=policy, beta=500.0).loss(pair()).item() == pytest.approx(0.0, abs=1e-8)
