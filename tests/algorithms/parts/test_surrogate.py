"""SEIKO's surrogate: its fit and its optimism."""

import pytest
import torch
from parts import BlackBox, T
from preferences import still

from lit_align.algorithms.parts.surrogate import Surrogate
from lit_align.shapes.reward import ShapesReward


def surrogate(**kwargs):
    torch.manual_seed(0)
    return Surrogate(BlackBox(), still(), **kwargs)


@pytest.mark.parametrize("max_bonus", [10.0, 0.02])
def test_the_bonus_is_the_paper_s(max_bonus):
    s = surrogate(alpha=0.1, ridge=0.5, max_bonus=max_bonus, epochs=1)
    x, y = torch.randn(9, s.x.shape[1]), torch.randn(9)
    s.fit(x[:4], y[:4])
    s.fit(x[4:], y[4:])
    assert torch.equal(s.x, x) and torch.equal(s.y, y)
    features = lambda rows: s.heads[0][:-1](rows).double()
    total = 0.5 * torch.eye(16, dtype=torch.float64)
    for phi in features(x):
        total += phi[:, None] * phi
    s.describe = lambda images, texts: torch.randn(3, x.shape[1], generator=torch.Generator().manual_seed(5))
    seen = s.describe(None, None)
    plain = s.heads[0](seen).flatten()
    bonus = T([0.1 * (phi @ torch.linalg.inv(total) @ phi).sqrt().item() for phi in features(seen)])
    torch.testing.assert_close(s(torch.zeros(3, 3, 2, 2), None), plain + bonus.clamp(max=max_bonus), rtol=1e-3, atol=1e-5)
    assert (bonus > 0.02).any()


def test_the_bonus_falls_with_the_number_of_queries_and_is_largest_where_none_was():
    s = surrogate(alpha=1.0, ridge=1e-3)
    phi = torch.zeros(2, 16)
    phi[0, 0] = phi[1, 1] = 1.0
    found = []
    for n in (4, 16):  # queries along the first axis
        s.inverse = (n * torch.diag(phi[0]) + 1e-3 * torch.eye(16)).inverse()
        found.append(s.bonus(phi))
    assert found[0][0].item() == pytest.approx(0.5, rel=1e-3) and found[1][0].item() == pytest.approx(0.25, rel=1e-3)
    assert found[0][1].item() == pytest.approx(10.0)  # 31.6, clipped
    assert s.bonus(torch.zeros(1, 16, requires_grad=True)).isfinite()


@pytest.mark.parametrize("optimism", ["ucb", "bootstrap"])
def test_a_fit_finds_the_reward_alike_from_any_random_state(optimism):
    s, again = (surrogate(optimism=optimism, epochs=60, batch_size=64) for _ in range(2))
    torch.manual_seed(4)
    y = torch.randn(64)
    x = y[:, None] * torch.randn(s.x.shape[1]) / 10
    s.fit(x, y)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again.fit(x, y)
    assert torch.equal(state, torch.get_rng_state())  # and leaves it alone
    assert all(torch.equal(a, b) for a, b in zip(s.heads.parameters(), again.heads.parameters()))
    for head in s.heads:
        assert (head(x).flatten() - y).square().mean() < 0.2 * y.var()
    assert not any(p.requires_grad or p.grad is not None for p in s.parameters())
    assert not any(m.training for m in s.heads.modules())


def test_bootstrap_is_the_largest_of_four_fits_to_resamples():
    s = surrogate(optimism="bootstrap", epochs=1)
    seen, fit = [], s._fit
    s._fit = lambda rows: seen.extend(rows) or fit(rows)
    s.fit(torch.randn(20, s.x.shape[1]), torch.randn(20))
    assert len(seen) == 4 and all(len(rows) == 20 and len(rows.unique()) < 20 for rows in seen)
    assert not torch.equal(seen[0], seen[1])
    image = torch.rand(3, 3, 16, 16, requires_grad=True)
    got, x = s(image, ["a", "b", "c"]), s.describe(image, ["a", "b", "c"])
    want = torch.stack([head(x).flatten() for head in s.heads])
    assert torch.equal(got, want.max(0).values)
    assert torch.autograd.grad(got.sum(), image)[0].any()


def test_it_sees_image_and_caption():
    s = surrogate()
    image = torch.rand(2, 3, 16, 16)
    x = s.describe(image, ["a", "b"])
    torch.testing.assert_close(x[:, :768], image.flatten(1))
    assert not torch.equal(x[0, 768:], x[1, 768:])
    features = ShapesReward(width=8)
    x = surrogate(features=features).describe(image, ["a", "b"])
    torch.testing.assert_close(x[:, :8], features.embed(image))
    assert not any(p.requires_grad for p in features.parameters())
