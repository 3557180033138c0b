import math
from unittest import mock

import pytest
import torch
from online import policy_gradient, quiet, step
from parts import Darkness, T, prompts, spy, trainer

from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.diffusion.process import VP
from lit_align.diffusion.transition import DDIM


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


def test_the_baseline_starts_at_the_first_rollouts_mean_reward(tmp_path):
    class High(Darkness):
        def forward(self, images, prompts):
            return 20 + super().forward(images, prompts)

    method = policy_gradient(DPOK, reward=High(), samples_per_prompt=4, minibatch=100, value_lr=0.0, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    with spy(method, "collect") as collect, spy(method.value, "forward") as value:
        trainer(tmp_path).fit(method, prompts(2, 2))
    (_, first), (_, second) = collect.results
    for seen in value.results:
        torch.testing.assert_close(seen, first.mean().expand_as(seen))
    assert method.value.head.bias.item() == pytest.approx(first.mean().item(), abs=1e-4) and not torch.equal(first, second)


def test_a_baseline_that_was_trained_before_stays(tmp_path):
    method = policy_gradient(DPOK, value_lr=0.0, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    method.value.head.weight.data.fill_(0.01)
    method.value.head.bias.data.fill_(7.0)
    trainer(tmp_path).fit(method, prompts(1))
    assert method.value.head.bias.item() == 7.0


def test_its_kl_is_a_tenth_of_the_squared_distance_of_the_noise_predictions():
    """At most of 50 DDIM steps with SD's noise schedule; hence ten times the released kl_weight of 0.01."""
    abar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)
    process = VP(abar, "epsilon", "leading", 1)
    grid = process.timesteps(50)
    t, s = grid[:-1], grid[1:]
    eps = torch.zeros(50, 4, requires_grad=True)
    x_t = torch.zeros(50, 4)
    a, sigma = process.coefficients(t, x_t)
    of = lambda e: DDIM(1.0)(process, x_t, (x_t - sigma * e) / a, e, t, s)
    share = of(eps + 0.1).kl(of(eps)) / 0.1**2
    assert share.median().item() == pytest.approx(0.088, abs=0.002)
    assert policy_gradient(DPOK).kl_weight == 0.1
