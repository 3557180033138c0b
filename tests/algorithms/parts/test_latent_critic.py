"""The critic of noisy latents knows the time."""

import pytest
import torch
from parts import T
from preferences import still

from lit_align.algorithms.parts.latent_critic import Value, param_groups


@pytest.fixture
def value():
    torch.manual_seed(0)
    critic = Value(still(), T([900, 500, 100]), width=8)
    for scale in critic.scales:
        scale.weight.data = torch.rand(3, 8) + 0.5
    return critic


def seen(n=4):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, *still().latent_shape, generator=g), still().summary(still().condition([f"p{i}" for i in range(n)]))


def test_each_time_of_the_grid_scales_the_layers_by_its_own_vector(value):
    x, text = seen()
    for row, t in enumerate((900, 500, 100)):
        h = torch.cat([x.flatten(1), text], 1)
        for layer, scale in zip(value.layers, value.scales):
            h = ((h @ layer.weight.T + layer.bias) * scale.weight[row]).clamp(min=0)
        want = (h @ value.head.weight.T + value.head.bias).flatten()
        torch.testing.assert_close(value(x, text, T([t] * 4)), want)


def test_times_are_each_samples_own_and_the_nearest_of_the_grid_counts(value):
    x, text = seen()
    each = torch.cat([value(x[i : i + 1], text[i : i + 1], T([t])) for i, t in enumerate((100, 900, 500, 100))])
    torch.testing.assert_close(value(x, text, T([100, 900, 500, 100])), each)
    torch.testing.assert_close(value(x, text, T([120, 860, 540, 0])), each)
    assert not torch.allclose(value(x, text, T([900] * 4)), value(x, text, T([100] * 4)), rtol=1e-3)


def test_it_sees_latents_and_captions(value):
    x, text = seen()
    a = value(x, text, T([500] * 4))
    assert not torch.allclose(a, value(x.flip(0), text, T([500] * 4))) and not torch.allclose(a, value(x, text.flip(0), T([500] * 4)))


def test_it_has_a_rate_of_its_own(value):
    policy, critic = param_groups(still(), value, 1e-4)
    assert "lr" not in policy and critic["lr"] == 1e-4 and len(critic["params"]) == len(list(value.parameters()))
    assert {id(p) for p in policy["params"]} == {id(p) for p in still().parameters() if p.requires_grad}
