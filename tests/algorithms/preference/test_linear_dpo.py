"""Linear-DPO against hand numbers."""

import pytest
import torch
from preferences import at, pair

from lit_align.algorithms.preference.linear_dpo import LinearDPO


def graded(gap):
    """Errors of a gap whose winner and loser can be differentiated by."""
    e = at(gap)
    return e._replace(win=e.win.requires_grad_(), lose=e.lose.requires_grad_())


def test_given_errors(policy):
    assert LinearDPO(policy=policy, beta=100.0).loss(pair()).item() == pytest.approx(-0.006, abs=1e-8)  # the paper's 500
    at_the_start = pair(0.2, 0.5, 0.2, 0.5)
    assert LinearDPO(policy=policy, beta=1000.0).loss(at_the_start).item() == pytest.approx(-0.15, abs=1e-8)


@pytest.mark.parametrize("gap,omega", [(0.0, 0.5), (0.1, 0.4), (-0.1, 0.6), (9.0, 0.2), (-9.0, 0.8)])
def test_a_pairs_weight_is_clipped_on_both_sides_and_a_constant(policy, gap, omega):
    e = graded(gap)
    loss = LinearDPO(policy=policy, beta=1.0, eta=0.2).loss(e)
    assert loss.item() == pytest.approx(omega * (e.win - e.lose).item(), abs=1e-8)
    win, lose = torch.autograd.grad(loss.sum(), (e.win, e.lose))
    assert win.item() == pytest.approx(omega, abs=1e-8) and lose.item() == pytest.approx(-omega, abs=1e-8)


def test_without_eta_a_pair_that_is_told_apart_teaches_nothing(policy):
    e = graded(0.6)
    (win,) = torch.autograd.grad(LinearDPO(policy=policy, beta=1.0).loss(e).sum(), e.win)
    assert win.item() == 0
