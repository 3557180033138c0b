"""Diffusion-ORPO against a hand number."""

import pytest
from preferences import pair

from lit_align.algorithms.preference.orpo import DiffusionORPO


def test_given_errors(policy):
    orpo = DiffusionORPO(policy=policy, weight=0.1, kappa=1.0)
    assert orpo.loss(pair()).item() == pytest.approx(0.16831972, abs=1e-8)
