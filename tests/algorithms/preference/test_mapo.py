"""MaPO against hand numbers."""

import math

import pytest
import torch
from parts import T
from preferences import pair

from lit_align.algorithms.preference.mapo import MaPO


def test_mapos_score_falls_from_one_and_is_smooth_at_zero(policy):
    f = MaPO(policy=policy).score
    assert f(T(0.0)).item() == 1.0
    x = torch.cat([torch.linspace(0, 0.01, 50, dtype=torch.float64), torch.logspace(-2, 1.5, 200, dtype=torch.float64)])
    y = f(x)
    assert (y.diff() <= 0).all() and y.isfinite().all()
    torch.testing.assert_close(f(T([0.10, 0.12], dtype=torch.float64)), T([0.97520832, 0.97029998], dtype=torch.float64), atol=1e-8, rtol=0)
    (slope,) = torch.autograd.grad(f(z := T(0.1, dtype=torch.float64, requires_grad=True)), z)
    assert slope.item() == pytest.approx(-0.2458, abs=1e-4)


def test_given_errors(policy):
    mapo = MaPO(policy=policy)
    assert mapo.loss(pair()).item() == pytest.approx(0.10073576, abs=1e-8)
    assert mapo.loss(pair(0.3, 0.3)).item() == pytest.approx(0.3 + 0.1 * math.log(2), abs=1e-8)
