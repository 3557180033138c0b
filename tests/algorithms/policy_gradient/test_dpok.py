import math
from unittest import mock

import pytest
import torch
from online import policy_gradient, quiet, step
from parts import T, prompts, spy, trainer

from lit_align.algorithms.policy_gradient.dpok import DPOK


def test_dpok_stops_at_both_ends_of_its_band():
    method = quiet(policy_gradient(DPOK, reward_weight=10.0, kl_weight=0.5, clip_range=0.1))
    mock.patch.object(method.value, "forward", return_value=T([0.25])).start()
    for delta, slope in ((0.05, -10 * 0.75 * math.exp(0.05)), (0.2, 0.0), (-0.2, 0.0)):
        s = step(delta, 1.0, mean=0.3, ref_mean=0.1)._replace(cond={"text": torch.zeros(1, 1, 1)})
        loss = method.loss(s)
        rho = min(max(math.exp(delta), 0.9), 1.1)
        assert loss.item() == pytest.approx(-10 * 0.75 * rho + 0.5 * 0.2**2 / (2 * 0.5**2) + 0.75**2, rel=1e-5)
        loss.sum().backward()
        assert s.log_prob.grad.item() == pytest.approx(slope, rel=1e-5)


def test_dpoks_baseline_learns_the_reward_at_its_own_rate(tmp_path):
    method = policy_gradient(DPOK, samples_per_prompt=4, minibatch=8, value_lr=1e-2, optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.0))
    policy = [p.detach().clone() for p in method.policy.parameters()]
    with spy(method, "log_mean") as log:
        trainer(tmp_path).fit(method, prompts(2, 15))
    losses = [call.args[1].item() for call in log.call_args_list if call.args[0] == "train/value_loss"]
    k = len(losses) // 15
    assert sum(losses[-k:]) < 0.5 * sum(losses[:k])
    assert all(torch.equal(a, b) for a, b in zip(policy, method.policy.parameters()))
