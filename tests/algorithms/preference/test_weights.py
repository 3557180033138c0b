"""Weighted pairs: each pair's loss counts as often as its weight says."""

import pytest
import torch
from parts import T, alone, tiny

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.preference import Errors
from lit_align.algorithms.preference.sft import SFT


def loss_of(method, weight):
    """The batch loss of three pairs with known errors."""
    method = alone(method)
    errors = Errors(T([0.1, 0.4, 0.2]), T([0.2, 0.1, 0.5]), T([0.2, 0.2, 0.2]), T([0.2, 0.2, 0.2]))
    method.errors = lambda batch: errors._replace(batch=batch)
    return method.batch_loss({} if weight is None else {"weight": weight})


def test_the_loss_is_the_mean_of_weighted_losses():
    each = [-torch.nn.functional.logsigmoid(T(10 * gap)) for gap in (0.1, -0.3, 0.3)]
    assert loss_of(DiffusionDPO(policy=tiny(), beta=10.0), None) == pytest.approx(sum(each).item() / 3)
    weighted = loss_of(DiffusionDPO(policy=tiny(), beta=10.0), T([3.0, 0.0, 0.0]))
    assert weighted == pytest.approx(each[0].item())
    assert loss_of(DiffusionDPO(policy=tiny(), beta=10.0), T([0.5, 1.5, 1.0])) == pytest.approx((0.5 * each[0] + 1.5 * each[1] + each[2]).item() / 3)


def test_a_method_that_reads_no_weight_says_so():
    batch = {"win": T([0.0]), "weight": T([1.0]), "index": [0]}
    with pytest.raises(ValueError, match="SFT does not weight pairs: set --data.weight_by null"):
        alone(SFT(policy=tiny(), learns_from="win")).check(batch)
