"""SRPO: known noise taken out, and a reward relative to the opposite prompt."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from gradients import BATCH, Calls, Contrast, fresh, make, seeded

from lit_align.algorithms.reward_gradient.srpo import LEVELS, SRPO
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_srpo_recovers_x_0_where_the_step_is_exact(family):
    method = make(SRPO, fresh(family))
    policy, times = method.policy, method.times()
    x_0, eps = torch.randn(2, 2, *policy.latent_shape)
    policy.denoise = lambda x, t, cond, scale: policy.process.target(x_0, eps, t)
    for t, s in ((0, 100), (300, 200), (998, 899)):
        torch.testing.assert_close(method.recover(x_0, eps, times[t], times[s], {}), x_0, atol=1e-4, rtol=0)
    policy.denoise = lambda x, t, cond, scale: policy.process.target(x_0, eps, t) + 0.1
    wrong = method.recover(x_0, eps, times[300], times[400], {})
    (a_t, s_t), (a_s, s_s) = ((policy.process.alpha(times[k]), policy.process.sigma(times[k])) for k in (300, 400))
    shift = 0.1 * (s_s - s_t) / a_s if family is StableDiffusion3 else 0.1 * (s_s / a_s - s_t / a_t)  # Euler; DDIM
    torch.testing.assert_close(wrong, x_0 + shift, atol=1e-4, rtol=0)


def test_srpos_reward_is_relative_and_its_two_steps_meet():
    method = make(SRPO, fresh(), good_words=("Real",), bad_words=("Oil",))
    method.reward, method.policy.decode = Contrast(), lambda z: image
    image, (good, bad) = torch.full((2, 3, 8, 8), 0.2), method.controlled(BATCH["prompt"])
    assert good == ["Real. a red circle", "Real. b"] and bad == ["Oil. a red circle", "Oil. b"]
    assert method.relative(image, BATCH, good, bad, 0.1).tolist() == pytest.approx([1.1 * 0.8 - 0.4] * 2)
    assert method.relative(image, BATCH, bad, good, 0.3).tolist() == pytest.approx([1.3 * 0.4 - 0.8] * 2)
    seen, ends = [], []
    method.times = lambda: torch.arange(LEVELS)
    method.rollout = lambda policy, cond, x: SimpleNamespace(x=x)
    method.recover = lambda x_0, eps, t, s, cond: seen.append((int(t), int(s))) or x_0
    method.rank_zero = lambda value: ends.append(value) or value
    k_plus, k_minus = torch.linspace(0.1, 0.25, LEVELS), torch.linspace(0.3, 0.01, LEVELS)  # from data to noise
    for _ in range(50):
        loss = method.batch_loss(BATCH)
        (a, end), (b, same) = seen[-2:]
        hop = min(100, end, LEVELS - 1 - end)
        assert end == same == ends[-1] and end - a == b - end == hop and hop > 0
        r_plus = (1 + k_plus[LEVELS - 1 - end]) * 0.8 - 0.4
        r_minus = (1 + k_minus[LEVELS - 1 - b]) * 0.4 - 0.8
        assert loss.item() == pytest.approx((F.relu(0.7 - r_plus) + F.relu(0.7 - r_minus)).item() / 2, abs=1e-5)


def test_srpo_starts_from_the_noise_it_injects_and_calls_with_gradient_twice():
    method = make(SRPO, fresh())
    calls, seen, recover = Calls(method.policy), [], method.recover
    method.recover = lambda x_0, eps, *rest: seen.append((x_0, eps)) or recover(x_0, eps, *rest)
    seeded(method)
    assert calls.all == 4 + 2 and calls.graded == 2
    want = method.rollout(method.policy, BATCH["prompt"], x=seen[0][1]).x
    torch.testing.assert_close(seen[0][0], want)
    assert not seen[0][0].requires_grad
