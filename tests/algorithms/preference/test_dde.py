"""DDE: the weight of a step."""

import pytest
import torch
import torch.nn.functional as F
from parts import T
from preferences import still

from lit_align.algorithms.preference.dde import DDE
from lit_align.algorithms.preference.preference import Errors
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_ddes_weight_is_unimodal_vanishes_at_both_ends_and_has_mean_one(family):
    dde = DDE(policy=still(family))
    process = dde.policy.process
    t = process.timesteps(process.num_train_timesteps)[:-1]
    w = dde.weight(t)
    peak = int(w.argmax())
    assert w.mean().item() == pytest.approx(1, abs=1e-4) and w[0] < 0.1 and w[-1] < 0.1
    assert 0.2 < peak / len(w) < 0.8 and (w[: peak + 1].diff() >= -1e-6).all() and (w[peak:].diff() <= 1e-6).all()


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_the_weight_multiplies_the_gap(family):
    """-log sigmoid(beta w D), w = sigma^2 alpha^2 over its mean, by hand at three times."""
    dde, process = DDE(policy=still(family), beta=2.0), still(family).process
    t = process.timesteps(1000)[[100, 500, 900]]
    if family is StableDiffusion3:
        alpha2 = (1 - t) ** 2
        u = process.timesteps(1000)[:-1]
        mean = (u * (1 - u)).square().mean()
        w = alpha2 * t**2 / mean
    else:
        abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
        w = abar[t.long()] * (1 - abar[t.long()]) / (abar * (1 - abar)).mean()
    gap = T([0.3, -0.2, 0.7], dtype=torch.float64)
    zero = torch.zeros_like(gap)
    got = dde.loss(Errors(zero, gap, zero, zero, t=t))
    torch.testing.assert_close(got.double(), -F.logsigmoid(2.0 * w.double() * gap), rtol=2e-3, atol=1e-4)
    assert w.max() / w.min() > 2
