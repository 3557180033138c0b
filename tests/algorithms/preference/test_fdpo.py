"""f-DPO's divergences against hand numbers."""

import math

import pytest
import torch
from parts import T
from preferences import logs

from lit_align.algorithms.preference.fdpo import FDPO
from lit_align.algorithms.preference.preference import Errors


def test_alpha_divergence_runs_from_forward_to_reverse_kl(policy):
    e = logs(0.6, -0.4)
    near = lambda alpha: FDPO(policy=policy, beta=1.0, divergence="alpha", alpha=alpha).loss(e).item()
    assert near(1e-6) == pytest.approx(0.32890987, abs=1e-5) and near(1 - 1e-5) == pytest.approx(0.31326169, abs=1e-4)


@pytest.mark.parametrize("divergence,expected", [
    ("forward_kl", 0.32890987),
    ("js", 0.48338694),
    ("alpha", 0.32385404),
    ("reverse_kl", 0.31326169),
])  # fmt: skip
def test_given_errors(policy, divergence, expected):
    fdpo = FDPO(policy=policy, beta=1.0, divergence=divergence, alpha=0.5)
    assert fdpo.loss(logs(0.6, -0.4)).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_far_from_the_reference_loss_and_gradient_stay_finite(policy, divergence):
    """exp(-u) leaves float32 at u = -89; u is clamped before that, on winner and loser alike."""
    for far in ((-400.0, 0.0), (0.0, -400.0), (-400.0, -400.0)):
        u = [T([x], requires_grad=True) for x in far]
        zero = torch.zeros(1)
        loss = FDPO(policy=policy, beta=1.0, divergence=divergence, alpha=0.5).loss(Errors(zero, zero, *u))
        assert loss.isfinite().all() and all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), u))


def test_the_clamp_lies_at_80(policy):
    near, far = (FDPO(policy=policy, beta=1.0, divergence="forward_kl").loss(logs(u, 0.0)).item() for u in (-79.0, -300.0))
    assert near == pytest.approx(math.exp(79), rel=1e-6) and far == pytest.approx(math.exp(80), rel=1e-6)
