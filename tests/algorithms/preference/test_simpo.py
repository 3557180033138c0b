"""Diffusion-SimPO against a hand number."""

import math

import pytest
from preferences import pair

from lit_align.algorithms.preference.simpo import DiffusionSimPO


def test_given_errors(policy):
    simpo = DiffusionSimPO(policy=policy, beta=100.0, gamma=0.5)
    assert simpo.loss(pair()).item() == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-8)
