"""Plackett-Luce DPO against hand numbers and a simulation."""

import math

import pytest
import torch
from parts import T
from preferences import ranked

from lit_align.algorithms.preference.pl_dpo import PlackettLuceDPO


def test_plackett_luce_on_given_scores(policy):
    pl = PlackettLuceDPO(policy=policy, beta=1.0)
    assert pl.loss(ranked([1, 0.3, -0.2], [3, 2, 1])).item() == pytest.approx(1.06062929, abs=1e-8)
    assert pl.loss(ranked([0.3, -0.2, 1], [2, 1, 3])).item() == pytest.approx(1.06062929, abs=1e-8)  # in any order
    assert pl.loss(ranked([1, 0.3], [1, 0])).item() == pytest.approx(0.40318605, abs=1e-8)  # Bradley-Terry at .7
    assert pl.loss(ranked([0.0] * 5, [5, 4, 3, 2, 1])).item() == pytest.approx(math.log(120), abs=1e-8)  # log k!


def test_plackett_luce_is_the_probability_of_drawing_in_that_order(policy):
    """Exponential races: item k's clock rings at rate exp(a_k); the chance of the observed order, by simulation."""
    a = T([0.5, -0.3, 0.2, 0.0])
    g = torch.Generator().manual_seed(0)
    clocks = -torch.rand(400_000, 4, generator=g).log() / a.exp()
    loss = PlackettLuceDPO(policy=policy, beta=1.0).loss(ranked(a.tolist(), [2, 0, 3, 1]))
    order = T([2.0, 0.0, 3.0, 1.0]).argsort(descending=True)
    share = (clocks.argsort(1) == order).all(1).float().mean().item()
    assert math.exp(-loss.item()) == pytest.approx(share, abs=0.003)
