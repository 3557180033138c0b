import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.path_search import PathSearch

SEEDS = list(range(24))


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 30, 100])
def test_rounds_move_forward_to_the_end_of_any_run(steps):
    hook = PathSearch(Level(), sampler=Sampler(steps, 1.0))
    at = max(1, round(0.2 * steps))
    for i, j, k in hook.rounds():
        assert 0 <= j < i == at < k <= steps
        at = k
    assert at == steps


def test_rounds_are_fractions_of_the_run():
    assert PathSearch(Level(), sampler=Sampler(10, 1.0)).rounds() == [(2, 1, 4), (4, 3, 6), (6, 5, 8), (8, 7, 10)]
    assert PathSearch(Level(), sampler=Sampler(100, 1.0)).rounds() == [(20, 10, 40), (40, 30, 60), (60, 50, 80), (80, 70, 100)]


def test_a_branch_goes_back_by_the_noising_process():
    """Of samples N(m, d^2) at a time, copies taken back have the marginal law of the earlier time."""
    policy = Analytic(1.5, 0.5)
    seen = []

    class Spy(Sampler):
        def run(self, policy, state, hooks=(), first=0, last=None, **kwargs):
            if first:
                seen.append((first, state.x.clone()))
            return super().run(policy, state, hooks, first=first, last=last, **kwargs)

    torch.manual_seed(0)
    PathSearch(Level(), 1, 1, 0.5, 0.2, 0.4, Spy(20, 1.0))(policy, [""] * 4000)
    grid = policy.process.timesteps(20)
    for first, x in seen:
        a, s = policy.process.alpha(grid[first]), policy.process.sigma(grid[first])
        assert x.mean().item() == pytest.approx((1.5 * a).item(), abs=0.03)
        assert x.std().item() == pytest.approx((a**2 * 0.25 + s**2).sqrt().item(), abs=0.03)
    assert len(seen) == 3


def test_more_branches_give_more_reward():
    means = [PathSearch(Level(), n, m, sampler=Sampler(10, 1.0))(Analytic(), [""] * 24, seeds=SEEDS).x.mean() for n, m in ((1, 1), (1, 4), (2, 8))]
    assert means[0] + 0.05 < means[1] < means[2]


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="PathSearch runs single steps of its sampler, and BestOfN has none: put BestOfN around"):
        PathSearch(Level(), sampler=BestOfN(Level()))
    with pytest.raises(ValueError, match="0 < back < ahead <= 1"):
        PathSearch(Level(), back=0.3, ahead=0.2)
    with pytest.raises(ValueError, match="max_nfe is 60, and it takes at least 100"):
        PathSearch(Level(), sampler=Sampler(10, 1.0), max_nfe=60)(Analytic(), [""])
