"""Conservative DPO against hand numbers."""

import math

import pytest
import torch
from preferences import at

from lit_align.algorithms.preference.cdpo import CDPO
from lit_align.algorithms.preference.preference import Errors


def test_label_smoothing_has_its_minimum_at_the_log_odds(policy):
    x = torch.linspace(-1, 5, 60001, dtype=torch.float64)
    loss = CDPO(policy=policy, beta=1.0, flip_rate=0.1).loss(Errors(torch.zeros_like(x), x, torch.zeros_like(x), torch.zeros_like(x)))
    assert x[loss.argmin()].item() == pytest.approx(math.log(9), abs=1e-3)


@pytest.mark.parametrize("rate", [-0.1, 0.5])
def test_a_flip_rate_that_means_nothing_is_refused(policy, rate):
    with pytest.raises(ValueError, match="flip_rate"):
        CDPO(policy=policy, flip_rate=rate)


def test_given_errors(policy):
    assert CDPO(policy=policy, beta=1.0, flip_rate=0.1).loss(at(1.0)).item() == pytest.approx(0.41326169, abs=1e-8)
