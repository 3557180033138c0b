"""DSPO, written out."""

import torch
from preferences import attached, batch, still

from lit_align.algorithms.preference.dspo import DSPO


def test_dspo_written_out():
    policy = still(scale=0.1)
    dspo = attached(DSPO(policy=policy, beta=3.0, weight=0.4))
    torch.manual_seed(5)
    e = dspo.errors(batch(policy))
    w = 1 - torch.sigmoid(3.0 * ((e.ref_win - e.win) - (e.ref_lose - e.lose)))
    target = e.target[:3]
    inside = (e.prediction[:3] - target) - 0.4 * w.view(3, 1, 1, 1) * (e.prediction[:3] - e.reference[:3])
    torch.testing.assert_close(dspo.loss(e), inside.pow(2).mean((1, 2, 3)))
    assert not e.reference.requires_grad
