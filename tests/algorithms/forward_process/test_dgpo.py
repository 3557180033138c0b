import math
from unittest import mock

import pytest
import torch
from online import forward_process, noised_batch
from parts import alone, prompts, trainer

from lit_align.algorithms.forward_process.crd import CRD
from lit_align.algorithms.forward_process.dgpo import DGPO


def test_dgpos_groups_share_their_noise():
    eps = alone(forward_process(DGPO)).noise(torch.zeros(6, 2, 4, 4)).view(2, 3, -1)
    assert (eps == eps[:, :1]).all() and not (eps[0] == eps[1]).any()
    free = alone(forward_process(CRD)).noise(torch.zeros(6, 2, 4, 4))
    assert not (free[0] == free[1]).any()


def test_in_dgpo_the_old_policy_draws_from_some_step_on(tmp_path):
    method, seen = forward_process(DGPO, switch=1), []
    draw = method.draw_latents
    with mock.patch.object(method, "draw_latents", lambda prompts: seen.append(method.policy.versions.active) or draw(prompts)):
        trainer(tmp_path).fit(method, prompts(1, 4))
    assert seen[::3] == [None, None, "old", "old"]  # at optimizer steps 0, 1, 2, 3


def test_dgpos_gradient_is_the_advantages_times_one_weight_per_group():
    method = alone(forward_process(DGPO, beta=7.0, kl_weight=0.2, clip_range=10.0))
    pred, ref, target = (
        [0.5, 0.1, 0.9, 0.3, -0.4, 0.2],
        [0.2, 0.3, 0.4, 0.9, -0.1, 0.6],
        [0.0, 0.1, 0.2, 0.0, 0.5, -0.5],
    )
    advantage = [1.0, -0.4, -0.6, -2.0, 1.5, 0.5]
    v = noised_batch(method, pred, pred, target, advantage, ref)
    loss = method.loss(v)
    loss.mean().backward()
    for g in range(2):
        rows = range(3 * g, 3 * g + 3)
        gap = sum(advantage[i] * ((pred[i] - target[i]) ** 2 - (ref[i] - target[i]) ** 2) for i in rows) / 3
        weight = 1 / (1 + math.exp(-7 * gap))
        kl = sum((pred[i] - ref[i]) ** 2 for i in rows) / 3
        assert loss[g].item() == pytest.approx(-math.log(1 / (1 + math.exp(7 * gap))) / 7 + 0.2 * kl, rel=1e-5)
        for i in rows:
            want = (weight * advantage[i] * 2 * (pred[i] - target[i]) + 0.2 * 2 * (pred[i] - ref[i])) / 6
            assert v.pred.grad[i].item() == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_dgpo_stops_where_a_sample_has_gone_far_enough():
    method = alone(forward_process(DGPO, kl_weight=0.0, clip_range=0.05))
    # exp(l_old - l): above, above, below, below, inside, inside; the favourable side has no gradient
    pred, old, advantage = (
        [0.1, 0.1, 0.6, 0.6, 0.5, 0.5],
        [0.5, 0.5, 0.1, 0.1, 0.51, 0.51],
        [1.0, -1.0, 1.0, -1.0, 1.0, -1.0],
    )
    v = noised_batch(method, pred, old, [0.0] * 6, advantage)
    method.loss(v).sum().backward()
    assert [bool(g) for g in v.pred.grad.flatten()] == [False, True, True, False, True, True]
