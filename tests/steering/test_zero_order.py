import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.steering.zero_order import ZeroOrderSearch, neighbor

INSIDE = Sampler(4, 1.0)
SEEDS = list(range(16))


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.95])
def test_a_neighbour_keeps_the_norm_and_has_the_cosine(cosine):
    x, z = torch.randn(2, 3, 4, 8, 8)
    y = neighbor(x, z, cosine)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    torch.testing.assert_close(torch.cosine_similarity(y.flatten(1), x.flatten(1)), torch.full((3,), cosine), atol=1e-5, rtol=0)


def test_without_iterations_it_is_a_plain_sample_to_the_last_bit():
    for inside in (INSIDE, Sampler(4, 1.0, DDIM(0.5))):  # also where steps have noise
        got = ZeroOrderSearch(Level(), iterations=0, sampler=inside)(Analytic(), [""] * 16, seeds=SEEDS)
        assert torch.equal(got.x, inside(Analytic(), [""] * 16, seeds=SEEDS).x)


def test_more_iterations_never_lose():
    before = torch.full((16,), -torch.inf)
    for k in range(4):
        x = ZeroOrderSearch(Level(), 3, k, sampler=INSIDE)(Analytic(), [""] * 16, seeds=SEEDS).x.mean((1, 2, 3))
        assert (x >= before).all()
        before = x
    assert before.mean() > INSIDE(Analytic(), [""] * 16, seeds=SEEDS).x.mean() + 0.05


def test_every_candidate_is_near_the_best_noise_so_far():
    tried, kept = [], []

    class Spy(Sampler):
        def run(self, policy, state, hooks=(), **kwargs):
            tried.append(state.x.clone())
            done = super().run(policy, state, hooks, **kwargs)
            kept.append(done.x.mean((1, 2, 3)))
            return done

    ZeroOrderSearch(Level(), 3, 2, 0.8, Spy(4, 1.0))(Analytic(), [""] * 2, seeds=[0, 1])
    noise, reward = torch.stack(tried).flatten(2), torch.stack(kept)  # (7, 2, d), (7, 2)
    pivot = noise[reward[:4].argmax(0), torch.arange(2)]
    torch.testing.assert_close(torch.cosine_similarity(noise[1:4], noise[:1], dim=2), torch.full((3, 2), 0.8), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cosine_similarity(noise[4:], pivot[None], dim=2), torch.full((3, 2), 0.8), atol=1e-5, rtol=0)


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="0 <= cosine < 1"):
        ZeroOrderSearch(Level(), cosine=1.0)
