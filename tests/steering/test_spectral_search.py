import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import derived_seed
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.spectral_search import SpectralSearch, low, replace_low

SEEDS = list(range(12))


def policy():
    return Analytic(shape=(2, 4, 8))


def haar(x):
    """One level of the orthonormal Haar transform: the average parts, and the three detail parts."""
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, torch.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 2


def test_the_low_part_is_the_haar_transforms():
    x = torch.randn(2, 3, 8, 16, dtype=torch.double)
    first, detail = haar(x)
    second, _ = haar(first)
    torch.testing.assert_close(low(x, 1), first)
    torch.testing.assert_close(low(x, 2), second)
    y = replace_low(x, torch.zeros_like(second), 2)
    torch.testing.assert_close(low(y, 2), torch.zeros_like(second))
    torch.testing.assert_close(haar(y)[1], detail)  # the finer parts stay
    torch.testing.assert_close(replace_low(x, second, 2), x)


def test_drawing_the_low_part_anew_leaves_white_noise():
    x = torch.randn(2000, 1, 8, 8)
    y = replace_low(x, torch.randn(2000, 1, 2, 2), 2).flatten(1)
    assert (y.T @ y / 2000 - torch.eye(64)).abs().max() < 0.15


def test_high_frequencies_stay_and_the_first_draw_is_the_initial_noise():
    tried = []

    class Spy(Sampler):
        def run(self, policy, state, hooks=(), **kwargs):
            tried.append(state.x.clone())
            return super().run(policy, state, hooks, **kwargs)

    SpectralSearch(Level(), 7, 3, 2, 2, Spy(4, 1.0))(policy(), [""] * 2, seeds=[0, 1])
    start = torch.stack([torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    assert len(tried) == 7 and torch.allclose(tried[0], start, atol=1e-6)
    for x in tried:
        torch.testing.assert_close(x - low(x, 2).repeat_interleave(4, -1).repeat_interleave(4, -2) / 4,
                                   start - low(start, 2).repeat_interleave(4, -1).repeat_interleave(4, -2) / 4)  # fmt: skip


def test_the_cross_entropy_method_written_out():
    """Generations of 3, mean and variance of the best 2 of all so far."""
    tried, rewards = [], []

    class Spy(Sampler):
        def run(self, policy, state, hooks=(), **kwargs):
            tried.append(low(state.x, 2))
            done = super().run(policy, state, hooks, **kwargs)
            rewards.append(done.x.flatten(1).mean(1))
            return done

    SpectralSearch(Level(), 9, 3, 2, 2, Spy(4, 1.0))(policy(), [""], seeds=[0])
    g = torch.Generator().manual_seed(derived_seed(0, 1))
    torch.randn(2, 4, 8, generator=g)  # the start that the stream belongs to
    for generation in (1, 2):
        seen, r = torch.cat(tried[: 3 * generation]), torch.cat(rewards[: 3 * generation])
        elite = seen[r.topk(2).indices]
        mean, std = elite.mean(0), (elite.var(0) + 1e-7).sqrt()
        if generation == 1:
            [torch.randn(2, 1, 2, generator=g) for _ in range(2)]  # the first generation's own draws
        for k in range(3):
            torch.testing.assert_close(tried[3 * generation + k][0], mean + std * torch.randn(2, 1, 2, generator=g), atol=1e-5, rtol=1e-4)


def test_it_finds_more_than_chance_does():
    inside = Sampler(4, 1.0)
    got = SpectralSearch(Level(), 30, 10, 5, 2, inside)(policy(), [""] * 12, seeds=SEEDS).x.mean()
    assert got > BestOfN(Level(), 30, inside)(policy(), [""] * 12, seeds=SEEDS).x.mean()


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="level 3 makes blocks of 8, into which latents of 4 x 8 do not fall: lower level"):
        SpectralSearch(Level(), level=3, sampler=Sampler(4, 1.0))(policy(), [""])
    with pytest.raises(ValueError, match="elites 2 or more"):
        SpectralSearch(Level(), elites=1)
