import math

import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.hook import PLAIN
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM
from lit_align.steering.demon import Demon
from lit_align.steering.svdd import SVDD

Z = torch.randn(5, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
R = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def sampler(*hooks, steps=6):
    return Sampler(steps, 1.0, DDIM(1.0), list(hooks))


@pytest.mark.parametrize("hook", [Demon(Level()), Demon(Level(), tau=0.3), Demon(Level(), weights="softmax", tau=0.5)])
def test_composed_noise_has_the_typical_norm_and_knows_rewards_up_to_a_constant(hook):
    z = hook.compose(Z, R)
    torch.testing.assert_close(z.flatten(1).norm(dim=1), torch.full((3,), 4.0))
    torch.testing.assert_close(hook.compose(Z, R + 7.0), z, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hook.compose(Z, -R), z, atol=0.1)


def test_weights_written_out():
    for p in range(3):
        r = R[:, p].double()
        b = torch.tensor([math.tanh(x) for x in ((r - r.mean()) / r.std()).tolist()])
        total = sum(b[k] * Z[k, p] for k in range(5))
        torch.testing.assert_close(Demon(Level()).compose(Z, R)[p], 4 * total / total.norm(), atol=1e-5, rtol=1e-5)
    total = Z[:, 0].sum(0)  # equal rewards: all weights are 1
    torch.testing.assert_close(Demon(Level()).compose(Z, 0 * R)[0], 4 * total / total.norm())


@pytest.mark.parametrize("ode_steps,cost", [(1, 6 + 4 * 5), (2, 6 + 4 * (2 + 2 + 2 + 2 + 1)), (9, 6 + 4 * (5 + 4 + 3 + 2 + 1))])
def test_cost_in_closed_form(ode_steps, cost):
    hook = Demon(Level(), 4, ode_steps=ode_steps)
    state = sampler(hook)(Analytic(), [""] * 3, seeds=[0, 1, 2])
    assert state.calls["nfe_forward"] == cost == hook.nfe(6, 6) and state.calls["reward_calls"] == 4 * 5


def test_a_candidate_is_finished_as_the_deterministic_sampler_would():
    hook, policy, plain = Demon(Level(), 2, ode_steps=99), Analytic(), Sampler(6, 1.0)
    x, cond = torch.randn(3, 1, 2, 2), {"c": torch.zeros(3, 1)}
    state = State(x, cond, [""] * 3, steps=6, i=1, hooks=(PLAIN,), sampler=plain)
    with torch.no_grad():
        torch.testing.assert_close(hook.finish(policy, state, x), plain.run(policy, State(x, cond), first=2).x)


def test_with_little_noise_it_goes_on_deterministically():
    """From the first step whose sigma / alpha is below min_noise."""
    hook = Demon(Level(), 2, min_noise=1.0)
    t = Analytic().process.timesteps(6)
    searched = [hook.searches(Analytic().process, i, 6, t[i : i + 1]) for i in range(6)]
    assert searched == [bool(u >= 0.5) for u in t[:-1]] and True in searched and False in searched
    state = sampler(hook)(Analytic(), [""] * 3, seeds=[0, 1, 2])
    assert state.calls["nfe_forward"] == 6 + 2 * sum(searched)


def test_more_noises_give_more_reward():
    means = [sampler(Demon(Level(), k))(Analytic(), [""] * 64, seeds=list(range(64))).x.mean() for k in (2, 8, 32)]
    plain = sampler()(Analytic(), [""] * 64, seeds=list(range(64))).x.mean()
    assert plain + 0.05 < means[0] < means[1] < means[2]


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="Demon composes the noise of steps, and this sampler has none above min_noise"):
        Sampler(6, 1.0, DDIM(0.0), [Demon(Level())])(Analytic(), [""])
    with pytest.raises(ValueError, match="Demon replaces `propose`, so SVDD inside it would do nothing"):
        sampler(Demon(Level()), SVDD(Level()))(Analytic(), [""])
    with pytest.raises(ValueError, match="noises is 2 or more"):
        Demon(Level(), 1)
