"""PRO, written out."""

import math

import pytest
from preferences import ranked

from lit_align.algorithms.preference.pro import PRO


def test_pro_written_out(policy):
    r = ranked([-0.3, -0.1, -0.2], [1, 3, 2])  # errors .3, .1, .2
    chain = -math.log(math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-3))) - math.log(math.exp(-2) / (math.exp(-2) + math.exp(-3)))
    assert PRO(policy=policy, kappa=10.0, sft_weight=0.5).loss(r).item() == pytest.approx(chain + 0.5 * 0.1, abs=1e-8)
