import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.diffusion.transition import DDIM
from lit_align.steering.budget_forcing import BudgetForcing


def sampler(*hooks, steps=6, **kwargs):
    return Sampler(steps, 1.0, DDIM(1.0), list(hooks), **kwargs)


@pytest.mark.parametrize("budget,starts,steps", [(30, 4, 6), (17, 3, 5), (250, 25, 10), (8, 3, 6)])
def test_the_budget_is_used_up_exactly_by_every_prompt(budget, starts, steps):
    for seed in range(4):
        state = sampler(BudgetForcing(Level(), budget, starts), steps=steps)(Analytic(), ["a"], seeds=[seed])
        assert state.calls["nfe_forward"] == state.calls["reward_calls"] == budget


def algorithm(policy, seed, budget, starts, steps):
    """The released loop for one prompt: one prediction at a time, a step ends by an improvement or by its quota."""
    grid, g, rule = policy.process.timesteps(steps), torch.Generator().manual_seed(seed), DDIM(1.0)

    def look(x, i):
        t = grid[i].expand(1)
        pred = policy.denoise(x, t, {}).detach()
        x_0, eps = policy.process.to_x0(pred, x, t), policy.process.to_eps(pred, x, t)
        return x_0.flatten(1).mean().item(), x, x_0, eps

    noise = lambda: randn_like(torch.empty(1, 1, 2, 2), [g])
    value, x, x_0, eps = max((look(noise(), 0) for _ in range(starts)), key=lambda found: found[0])
    quota, best = (budget - starts) // (steps - 1), value
    left, spare, accepted = quota, budget - starts - quota * (steps - 1), []
    for i in range(steps - 1):
        final = i == steps - 2
        left += spare if final else 0
        g_i = rule(policy.process, x, x_0, eps, grid[i].expand(1), grid[i + 1].expand(1))
        tries = []
        while len(tries) < left:
            tries.append(look(g_i.sample(noise()), i + 1))
            if tries[-1][0] > best and not final:
                break
        value, x, x_0, eps = max(tries, key=lambda found: found[0])
        accepted.append(value > best)
        left = quota + (left - len(tries) if value > best else 0)
        best = max(best, value)
    return rule(policy.process, x, x_0, eps, grid[-2].expand(1), grid[-1].expand(1)).mean, accepted


def test_it_is_the_released_loop():
    accepted = []
    for budget in (12, 20):
        got = sampler(BudgetForcing(Level(), budget, 4))(Analytic(), [""] * 6, seeds=list(range(6))).x
        for seed in range(6):
            want, some = algorithm(Analytic(), seed, budget, 4, 6)
            torch.testing.assert_close(got[seed : seed + 1], want)
            accepted += some
    assert any(accepted) and not all(accepted)  # both ends of a step have happened


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="budget is 10, and 6 starts and one draw for each of 5 steps take 11"):
        sampler(BudgetForcing(Level(), 10, 6))(Analytic(), [""])
    with pytest.raises(ValueError, match="1 <= starts < budget"):
        BudgetForcing(Level(), 25, 25)
