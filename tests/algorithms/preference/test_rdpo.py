"""Robust DPO against hand numbers."""

import pytest
from preferences import at

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.rdpo import RDPO


def test_robust_dpo_is_unbiased_under_flips(policy):
    """E over flips of the robust loss is the clean DPO loss."""
    robust, dpo = RDPO(policy=policy, beta=1.0, flip_rate=0.2), DiffusionDPO(policy=policy, beta=1.0)
    for x in (-2.0, 0.3, 1.7):
        assert 0.8 * robust.loss(at(x)).item() + 0.2 * robust.loss(at(-x)).item() == pytest.approx(dpo.loss(at(x)).item(), abs=1e-12)


def test_given_errors(policy):
    assert RDPO(policy=policy, beta=1.0, flip_rate=0.1).loss(at(1.0)).item() == pytest.approx(0.18826169, abs=1e-8)
