"""CaPO: calibrated rewards, Pareto fronts, the gap's target."""

import math

import pytest
import torch
from parts import T
from preferences import ranked

from lit_align.algorithms.preference.capo import CaPO, calibrated, front


def test_capo_on_given_rewards(policy):
    assert calibrated(T([[[2.0], [1.0], [0.0]]])).flatten().tolist() == pytest.approx([0.80592783, 0.5, 0.19407217], abs=1e-7)
    capo = CaPO(policy=policy)
    assert capo.loss(ranked([0.0, 0.0, 0.0], [2, 1, 0])).item() == pytest.approx(0.37436734, abs=1e-6)
    alike = capo.loss(ranked([0.3, 0.3, 0.3], [1, 1, 1]))
    assert alike.item() == 0


def test_capos_fronts_are_the_undominated(policy):
    scores = T([[[3.0, 1.0], [1.0, 3.0], [2.0, 0.5], [0.0, 0.0], [0.0, 0.0]]])
    assert front(scores)[0].tolist() == [True, True, False, False, False]
    assert front(-scores)[0].tolist() == [False, False, False, True, True]


def test_capo_moves_the_gap_to_its_target(policy):
    """The weight w(t) = sigmoid(b - log SNR), by hand at one t."""
    capo, t = CaPO(policy=policy, beta=2.0, bias=1.5), torch.tensor([300])
    a, s = policy.process.alpha(t).item(), policy.process.sigma(t).item()
    w = 1 / (1 + math.exp(-(1.5 - 2 * math.log(a / s))))
    got = capo.loss(ranked([0.4, 0.1], [1.0, 0.0], t)).item()
    ca = 1 / (1 + math.exp(-1))
    assert got == pytest.approx(((ca - (1 - ca)) - 2.0 * w * 0.3) ** 2, abs=1e-5)
