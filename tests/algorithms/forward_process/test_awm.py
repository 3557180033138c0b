import math

import pytest
import torch
from online import forward_process, noised_batch
from parts import FAMILIES, T, alone, move, tiny, trained

from lit_align.algorithms.forward_process.awm import AWM


@FAMILIES
def test_awms_ratio_is_one_and_its_gradient_a_times_that_of_the_denoising_loss(family):
    method = alone(forward_process(AWM, tiny(family), w="plain", beta=0.0, beta_ema=0.0))
    move(method.policy)
    t = method.policy.process.timesteps(5)[T([1, 3])].view(2, 1)
    m = {
        "x_0": torch.randn(2, *method.policy.latent_shape),
        "t": t,
        "advantage": T([-3.0, 2.0]),
        "cond": method.policy.condition(["a"]),
    }
    v = method.noised_batch(m | {"row": torch.arange(2), "step": T([0, 0])})
    assert v.old is None and v.ref is None
    grads = lambda loss: torch.autograd.grad(loss, trained(method.policy), retain_graph=True)
    loss = method.loss(v)
    torch.testing.assert_close(loss.detach(), T([0.6, -0.4]))
    want = grads((T([-0.6, 0.4]) * (v.pred - v.target).square().flatten(1).mean(1)).mean())
    for a, b in zip(grads(loss.mean()), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)
    ratios = [call.args[1].item() for call in method.log_mean.call_args_list if call.args[0] == "train/ratio"]
    assert ratios == [1.0] and any(g.any() for g in want)


def test_awms_ghuber_weight_and_its_distances():
    method = alone(forward_process(AWM, beta=0.3, beta_ema=0.7))
    v = noised_batch(method, [0.9], [0.4], [0.1], [2.5], [-0.2], t=0.6)
    loss = method.loss(v)
    assert loss.item() == pytest.approx(-0.5 + 0.3 * 1.1**2 + 0.7 * 0.5**2, rel=1e-5)
    loss.backward()
    slope = 0.6 * 0.64**-0.75 * 2 * 0.8  # d/dv of t l^p / p, p = 1/4, l = (v - target)^2
    assert v.pred.grad.item() == pytest.approx(0.5 * slope + 0.3 * 2 * 1.1 + 0.7 * 2 * 0.5, rel=1e-4)


def test_awm_off_policy_weighs_by_the_ratio_and_clips_it():
    method = alone(forward_process(AWM, w="plain", beta=0.0, beta_ema=0.0, clip_range=0.2, off_policy=True, updates=3))
    v = noised_batch(method, [0.5, 0.5, 0.9, 0.9], [0.6, 0.6, 0.1, 0.1], [0.0] * 4, [5.0, -5.0, 5.0, -5.0])
    up, down = math.exp(0.36 - 0.25), math.exp(0.01 - 0.81)
    loss = method.loss(v)
    torch.testing.assert_close(loss.detach(), T([-up, up, -down, 0.8]))
    loss.sum().backward()
    torch.testing.assert_close(v.pred.grad.flatten(), T([up, -up, 2 * 0.9 * down, 0.0]))


def test_awm_on_policy_makes_one_update():
    with pytest.raises(ValueError, match="updates is 2"):
        forward_process(AWM, updates=2)
