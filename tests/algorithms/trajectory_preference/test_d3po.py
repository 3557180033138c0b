import math

import pytest
import torch
from online import compared, policy_gradient
from parts import T, prompts, sgd, spy, trainer

from lit_align.algorithms.trajectory_preference.d3po import D3PO


def test_d3pos_loss_lies_in_its_band_and_is_flat_outside_the_clip():
    d3po = policy_gradient(D3PO)
    inside = T([0.05, -0.05], requires_grad=True)
    loss = d3po.loss(compared(inside, T([1.0, -1.0])))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.1 * 0.1)), abs=1e-6)
    for ratios, value in (([9.0, -9.0], 0.68316), ([-9.0, 9.0], 0.70323)):
        z = T(ratios, requires_grad=True)
        loss = d3po.loss(compared(z, T([1.0, -1.0])))
        assert loss.item() == pytest.approx(value, abs=1e-5)
        loss.backward()
        assert not z.grad.any()
    z = T([0.02, 0.01], requires_grad=True)
    tie = d3po.loss(compared(z, T([0.0, 0.0])))
    tie.backward()
    assert tie.item() == pytest.approx(math.log(2)) and not z.grad.any()


def test_d3pos_pairs_start_from_one_noise_and_go_apart(tmp_path):
    method = policy_gradient(D3PO)
    with spy(method, "collect") as collect:
        trainer(tmp_path).fit(method, prompts(2))
    trajectory, _ = collect.results[0]
    x, end = trajectory.x_t[:, 0], trajectory.x_s[:, -1]
    assert torch.equal(x[0], x[1]) and torch.equal(x[2], x[3]) and not torch.equal(x[0], x[2])
    assert not torch.equal(end[0], end[1])


def test_d3pos_reference_is_the_last_rounds_policy(tmp_path):
    method = policy_gradient(D3PO, refresh_every=2, beta=10.0, optimizer=sgd(10.0))
    with spy(method, "evaluate") as evaluate:
        trainer(tmp_path).fit(method, prompts(2, 3))
    starts = [step.log_ref_ratio.abs().max().item() for step in evaluate.results]
    per_rollout = len(starts) // 3
    assert starts[0] < 1e-5 < starts[per_rollout] and starts[2 * per_rollout] < 1e-5
