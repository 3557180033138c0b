import math
from unittest import mock

import pytest
import torch
from online import forward_process, noised_batch
from parts import FAMILIES, T, alone, move, tiny, trained

from lit_align.algorithms.forward_process.nft import DiffusionNFT


def test_nfts_equation_on_numbers():
    method, t, x_0, eps = alone(forward_process(DiffusionNFT, beta=0.4, kl_weight=0.3)), 0.6, 0.2, -0.7
    x_t = (1 - t) * x_0 + t * eps
    for pred, old, ref, advantage in ((-1.0, -0.5, 0.4, 2.0), (0.3, -0.9, -0.8, -4.0)):
        v = noised_batch(method, [pred], [old], [eps - x_0], [advantage], [ref])
        plus, minus = x_t - t * (0.6 * old + 0.4 * pred), x_t - t * (1.4 * old - 0.4 * pred)
        r = advantage / 10 + 0.5
        want = 5 / 0.4 * (r * abs(plus - x_0) + (1 - r) * abs(minus - x_0)) + 0.3 * (pred - ref) ** 2  # d^2 / |d|
        loss = method.loss(v)
        assert loss.item() == pytest.approx(want, rel=1e-5)
        loss.backward()
        slope = r * math.copysign(2, plus - x_0) * -t * 0.4 + (1 - r) * math.copysign(2, minus - x_0) * t * 0.4
        assert v.pred.grad.item() == pytest.approx(5 / 0.4 * slope + 0.6 * (pred - ref), rel=1e-4)


@FAMILIES
def test_nfts_gradient_starts_at_2r_minus_1_times_its_positive_part(family):
    method = alone(forward_process(DiffusionNFT, tiny(family), kl_weight=0.0))
    move(method.policy)
    method.policy.update_old()
    x_0 = torch.randn(1, *method.policy.latent_shape)
    t = method.policy.process.timesteps(5)[2:3].view(1, 1)
    mock.patch.object(method, "noise", return_value=torch.randn_like(x_0)).start()

    def gradient(advantage):
        m = {"x_0": x_0, "t": t, "advantage": T([advantage]), "cond": method.policy.condition(["a"])}
        v = method.noised_batch(m | {"row": T([0]), "step": T([0])})
        assert torch.equal(v.pred.detach(), v.old)
        plus, minus = (method.distance((1 - b) * v.old + b * v.pred, v).item() for b in (1, -1))
        assert plus == minus
        return torch.cat([g.flatten() for g in torch.autograd.grad(method.loss(v), trained(method.policy))])

    top = gradient(5.0)  # r = 1
    assert top.abs().max() > 0
    assert gradient(0.0).abs().max() < 1e-6 * top.abs().max()
    for advantage in (-5.0, -2.0, 1.5):
        torch.testing.assert_close(
            gradient(advantage), advantage / 5 * top, atol=1e-5 * top.abs().max().item(), rtol=1e-3
        )
