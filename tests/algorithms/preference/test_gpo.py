"""GPO's convex functions against hand numbers."""

import pytest
from preferences import at

from lit_align.algorithms.preference.gpo import GPO


@pytest.mark.parametrize("f,gap,expected", [
    ("logistic", 1.0, 0.31326169),
    ("hinge", 0.0, 1.0),
    ("hinge", 1.0, 0.0),
    ("square", 3.0, 4.0),
    ("exponential", 1.0, 0.36787944),
    ("truncated_square", -1.0, 4.0),
    ("truncated_square", 2.0, 0.0),
])  # fmt: skip
def test_given_errors(policy, f, gap, expected):
    assert GPO(policy=policy, beta=1.0, f=f).loss(at(gap)).item() == pytest.approx(expected, abs=1e-8)


def test_the_exponential_stays_finite(policy):
    assert GPO(policy=policy, beta=1.0, f="exponential").loss(at(-1000.0)).isfinite()
