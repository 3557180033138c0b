"""RRHF, written out."""

import pytest
from preferences import ranked

from lit_align.algorithms.preference.rrhf import RRHF


def test_rrhf_written_out(policy):
    r = ranked([-0.1, -0.3, -0.2], [1, 3, 2])  # the best has the largest error
    wrong = (0.3 - 0.1) + (0.3 - 0.2) + (0.2 - 0.1)
    assert RRHF(policy=policy, kappa=2.0, sft_weight=0.5).loss(r).item() == pytest.approx(2 * wrong + 0.5 * 0.3, abs=1e-8)
    assert RRHF(policy=policy).loss(ranked([-0.1, -0.2, -0.3], [3, 2, 1])).item() == pytest.approx(0.1, abs=1e-8)
