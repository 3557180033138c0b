"""FlowDPPO's mask by hand."""

import pytest
import torch
from online import policy_gradient, quiet, step
from parts import alone, rollout, tiny

from lit_align.algorithms.policy_gradient.flow_dppo import FlowDPPO
from lit_align.policies.stable_diffusion3 import StableDiffusion3

STD = 0.5


def make(**kwargs):
    policy = tiny(StableDiffusion3)
    return quiet(policy_gradient(FlowDPPO, policy, rollout=rollout(policy, 4), samples_per_prompt=4, **({"beta": 0.0} | kwargs)))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("delta", [0.3, -0.3])
@pytest.mark.parametrize("kl", [0.9e-3, 1.1e-3])
def test_a_step_is_masked_beyond_the_bound_if_it_would_move_further_away(advantage, delta, kl):
    method = make(max_kl=1e-3)
    mean = STD * (2 * kl) ** 0.5  # KL = (mean - old_mean)^2 / (2 std^2)
    s = step(delta, advantage, mean=0.4 + mean, old_mean=0.4, std=STD)
    loss = method.loss(s)
    (gradient,) = torch.autograd.grad(loss.sum(), s.log_prob)
    away = delta * advantage > 0
    want = 0.0 if kl > 1e-3 and away else -advantage * torch.tensor(delta).exp().item()
    assert loss.item() == pytest.approx(want, rel=1e-5) and gradient.item() == pytest.approx(want, rel=1e-5)


def test_a_ratio_however_large_is_not_clipped_within_the_bound():
    loss = make(max_kl=1e-3).loss(step(3.0, 1.0))
    assert loss.item() == pytest.approx(-torch.tensor(3.0).exp().item(), rel=1e-5)


def test_it_has_no_clip_range_and_its_bound_is_positive():
    with pytest.raises(TypeError, match="clip_range"):
        make(clip_range=1e-4)
    with pytest.raises(ValueError, match="FlowDPPO: max_kl is -1; it must be greater than 0"):
        alone(make(max_kl=-1))


def test_the_kl_to_the_reference_is_added():
    with_kl, without = (make(beta=b).loss(step(0.1, 1.0, mean=0.3, ref_mean=0.1, old_mean=0.3, std=STD)) for b in (0.04, 0.0))
    assert with_kl.item() - without.item() == pytest.approx(0.04 * 0.2**2 / (2 * STD**2) * 0.1, rel=1e-3)  # times t - s
