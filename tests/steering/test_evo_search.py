import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.evo_search import EvoSearch

SEEDS = list(range(12))


def test_the_papers_populations_cost_100_samples():
    state = EvoSearch(Level(), sampler=Sampler(50, 1.0, DDIM(1.0)))(Analytic(), [""], seeds=[0])
    assert state.calls["nfe_forward"] == 100 * 50 and state.calls["reward_calls"] == 42 + 26 + 26 + 26 + 30


def children(search, mode_std, k=40, size=2000, n=1):
    x = torch.randn(n, k, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    reward = torch.arange(k).float()[torch.randperm(k)].expand(n, k)
    state = State(torch.empty(n * size, 1, 4, 4), {}, generators=[torch.Generator().manual_seed(i) for i in range(n * size)])
    return x, reward, search.children(x, reward, state, n, mode_std)


def test_mutated_noise_is_still_noise_and_elites_stay():
    search = EvoSearch(Level(), elites=3, mutation=0.6)
    x, reward, found = children(search, 0)
    assert torch.equal(found[:3], x[0, reward[0].topk(3).indices])
    best = x[0, reward[0].argmax()].flatten()
    # nine in ten tournaments admit the best, so the children's mean over mutations is nearly 0.8 of it
    winners = found[3:].flatten(1)
    near = winners[(winners - 0.8 * best).norm(dim=1) < (winners + 0.8 * best).norm(dim=1)]
    assert (winners.mean(0) @ best / (best @ best)).item() == pytest.approx(0.8 * 0.9, abs=0.08) and len(near) > 0.8 * len(winners)
    residual = winners - 0.8 * best
    assert residual[residual.norm(dim=1) < 4].std().item() == pytest.approx(0.6, abs=0.06)


def test_later_states_get_the_noise_of_their_step():
    search = EvoSearch(Level(), elites=0)
    x, reward, found = children(search, torch.tensor(0.05))
    parent = torch.cdist(found.flatten(1), x[0].flatten(1)).min(1)
    assert (found.flatten(1) - x[0].flatten(1)[parent.indices]).std().item() == pytest.approx(0.05, abs=0.003)
    share = (parent.indices == reward[0].argmax()).float().mean().item()
    assert share == pytest.approx(0.9, abs=0.03)  # the best wins whenever it enters


def test_parents_are_all_states_at_the_time_with_the_reward_they_led_to():
    pools, search = [], EvoSearch(Level(), [0.0, 0.5], [4, 3, 2], 1, sampler=Sampler(6, 1.0, DDIM(1.0)))
    bred = search.children
    search.children = lambda x, reward, *rest: pools.append((x, reward)) or bred(x, reward, *rest)
    state = search(Analytic(), [""] * 3, seeds=[0, 1, 2])
    assert [tuple(x.shape[:2]) for x, _ in pools] == [(3, 4), (3, 7)]
    noise = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(pools[0][0][1, 0], noise)  # the first of the first generation is the plain sample's
    torch.testing.assert_close(pools[1][1][:, :4], pools[0][1])
    plain = Sampler(6, 1.0, DDIM(1.0))(Analytic(), [""] * 3, seeds=[0, 1, 2]).x.mean((1, 2, 3))
    torch.testing.assert_close(pools[0][1][:, 0], plain)
    assert (state.x.mean((1, 2, 3)) >= torch.cat([r for _, r in pools], 1).amax(1) - 1e-6).all()


def test_evolution_beats_as_many_samples():
    inside = Sampler(8, 1.0, DDIM(1.0))
    evo = EvoSearch(Level(), [0.0, 0.4, 0.6], [8, 8, 8, 8], 2, sampler=inside)(Analytic(), [""] * 12, seeds=SEEDS)
    best = BestOfN(Level(), int(evo.calls["nfe_forward"] // 8), inside)(Analytic(), [""] * 12, seeds=SEEDS)
    assert evo.x.mean() > best.x.mean()


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="EvoSearch adds the noise of a step to samples on their way, and this sampler's steps have none"):
        EvoSearch(Level(), sampler=Sampler(6, 1.0))(Analytic(), [""])
    EvoSearch(Level(), [0.0], [2, 2], sampler=Sampler(6, 1.0))(Analytic(), [""])
    with pytest.raises(ValueError, match="4 times need 5 populations"):
        EvoSearch(Level(), populations=[3, 3])
    with pytest.raises(ValueError, match="times rise"):
        EvoSearch(Level(), [0.5, 0.2], [3, 3, 3])
