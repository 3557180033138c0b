import pytest
import torch
import torch.nn.functional as F
from hooked import PROMPTS, SEEDS, draw, noise, still
from parts import Analytic

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, derived_seed
from lit_align.diffusion.transition import DDIM
from lit_align.steering.noise_inversion import NoiseInversion, NoiseSelection
from lit_align.steering.random_search import RandomSearch


def cycle(policy, x, steps=3, w=2.0, prompts=PROMPTS):
    """A sample of SD's schedule and its inversion, written out: the network is asked at x_s and the step's own time."""
    a, grid = torch.as_tensor(policy.pipe.scheduler.alphas_cumprod), policy.process.timesteps(steps).tolist()
    cond, null = policy.condition(prompts), policy.condition([""] * len(x))

    def eps(x, t):
        u = policy.denoiser(x, t, null["text"]).sample
        return u + w * (policy.denoiser(x, t, cond["text"]).sample - u)

    for t, s in zip(grid[:-1], grid[1:]):
        e = eps(x, t)
        x = a[s].sqrt() * (x - (1 - a[t]).sqrt() * e) / a[t].sqrt() + (1 - a[s]).sqrt() * e
    sample = x
    for t, s in zip(grid[-2::-1], grid[:0:-1]):
        e = eps(x, t)
        x = a[t].sqrt() * (x - (1 - a[s]).sqrt() * e) / a[s].sqrt() + (1 - a[t]).sqrt() * e
    return sample, x


@torch.no_grad()
def test_the_noise_that_comes_back_is_selected():
    policy, n = still(), 5
    sampler = Sampler(3, 2.0)
    got = NoiseSelection(n, sampler)(policy, PROMPTS, seeds=SEEDS)
    starts = torch.stack([noise(policy, seeds=[derived_seed(seed, k) for seed in SEEDS]) for k in range(n)])
    cycles = [cycle(policy, x) for x in starts]
    cosines = torch.stack([F.cosine_similarity(x.flatten(1), back.flatten(1)) for x, (_, back) in zip(starts, cycles)])
    assert cosines.std() > 1e-4 and cosines.min() < 0.9999
    want = torch.stack([sample for sample, _ in cycles])[cosines.argmax(0), torch.arange(2)]
    torch.testing.assert_close(got.x, want, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(next(iter(got.extras.values()))["reward"], cosines.amax(0), atol=1e-3, rtol=1e-3)
    assert got.calls["nfe_forward"] == n * 2 * 3 * 2


@torch.no_grad()
def test_an_update_turns_the_noise_towards_its_inversion():
    """The gradient of the cosine in z, z' held fixed, against autograd; then the better of the two samples."""
    policy, sampler = still(), Sampler(3, 2.0)
    got = NoiseInversion(2, 5000.0, 0.5, sampler=sampler)(policy, PROMPTS, seeds=SEEDS)
    x = noise(policy)
    first, back = cycle(policy, x)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        cosine = F.cosine_similarity(leaf.flatten(1), back.flatten(1))
        (gradient,) = torch.autograd.grad(cosine.sum(), leaf)
    moved = x + 5000 * gradient
    second, again = cycle(policy, moved)
    now = F.cosine_similarity(moved.flatten(1), again.flatten(1))
    want = torch.where((now > cosine.detach()).view(-1, 1, 1, 1), second, first)
    assert (moved - x).abs().max() > 0.01
    torch.testing.assert_close(got.x, want, atol=3e-3, rtol=1e-2)


def test_through_both_chains_the_gradient_is_that_of_finite_differences_and_descends():
    policy, sampler, h = still(), Sampler(2, 2.0), 0.02
    method = NoiseInversion(2, 1.0, 0.0, through=True, sampler=sampler)
    x, start = noise(policy), State(noise(policy), policy.condition(PROMPTS), PROMPTS)
    _, stability, gradient = method.gradient(policy, start, x, ())
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        value = lambda x: F.cosine_similarity(x.flatten(1).double(), cycle(policy, x, 2)[1].flatten(1).double())
        slope = (value(x + h * u) - value(x - h * u)) / (2 * h)
        torch.testing.assert_close(stability.double(), value(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((gradient * u).flatten(1).sum(1).double(), slope, atol=2e-4, rtol=0.05)
    found = lambda n, lr: next(iter(NoiseInversion(n, lr, 0.5, True, sampler)(policy, PROMPTS, seeds=SEEDS).extras.values()))["reward"]
    assert (found(3, 200.0) > found(1, 200.0)).all() and torch.equal(found(2, -200.0), found(1, 200.0))


def test_one_noise_is_plain_sampling_to_the_last_bit():
    for method in (NoiseSelection(1, Sampler(4, 3.0)), NoiseInversion(1, sampler=Sampler(4, 3.0)), NoiseInversion(3, 0.0, sampler=Sampler(4, 3.0))):
        assert torch.equal(method(still(), PROMPTS, seeds=SEEDS).x, draw(still()))


def test_the_exact_flow_of_a_gaussian_comes_back_nearly_whole():
    state = NoiseSelection(2, Sampler(50, 1.0))(Analytic(), [""] * 3, seeds=[0, 1, 2])
    assert (next(iter(state.extras.values()))["reward"] > 0.97).all()


def test_another_sampler_goes_around_it_and_noise_is_refused():
    from parts import Darkness

    state = RandomSearch(Darkness(), 2, NoiseSelection(2, Sampler(2, 1.0)))(still(), PROMPTS, seeds=SEEDS)
    assert state.calls["nfe_forward"] == 2 * 2 * 4
    with pytest.raises(ValueError, match="NoiseSelection inverts steps, and this sampler's have noise"):
        NoiseSelection(2, Sampler(2, 1.0, DDIM(1.0)))(still(), PROMPTS)
    with pytest.raises(ValueError, match="put RandomSearch around NoiseInversion"):
        NoiseInversion(sampler=RandomSearch(Darkness(), 2))
