import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.steering.dsearch import DSearch
from lit_align.steering.svdd import SVDD

SEEDS = [3, 4, 5]


def run(hook, steps=11, outer=(), n=3):
    return Sampler(steps, 1.0, DDIM(1.0), [*outer, hook])(Analytic(), [f"p{s}" for s in range(3, 3 + n)], seeds=list(range(3, 3 + n)))


def test_the_beam_narrows_as_released():
    hook = DSearch(Level(), beam=16)
    released = [max(1, int(16 * (1 / 16) ** (i / 10))) for i in range(10)]
    assert [hook.left(i, 11) for i in range(10)] == released and released[0] == 16 and released[-1] == 1
    assert DSearch(Level(), beam=20, replace=0.1).left(9, 11) == 20


def test_wide_steps_become_likely():
    p = [DSearch(Level()).probability(i, 50) for i in range(50)]
    assert p[0] == 0 and p[49] == pytest.approx(1 - 2.718281828**-3) and p == sorted(p)
    assert DSearch(Level(), search="linear").probability(0, 50) == pytest.approx(10 / 49)
    assert DSearch(Level(), search="uniform").probability(7, 50) == 0.7


def test_a_beam_of_one_with_narrow_steps_is_svdd():
    got, want = run(DSearch(Level(), candidates=3, beam=1, width=1.0)), run(SVDD(Level(), candidates=3))
    assert got.prompts == want.prompts == ["p3", "p4", "p5"]
    assert torch.equal(run(DSearch(Level(), candidates=3, beam=1, width=1.0, search="all")).x[0], run(DSearch(Level(), candidates=3, beam=1, width=1.0, search="all"), n=1).x[0])
    assert (got.x.mean() - run(SVDD(Level(), candidates=1)).x.mean()) > 0.1


def test_the_samples_of_a_prompt_with_the_lowest_values_leave():
    hook, sizes, left = DSearch(Level(), candidates=2, beam=4, width=1.0), [], []

    class Look(Hook):
        def transition(self, policy, state, sampler):
            sizes.append(len(state.x))
            return super().transition(policy, state, sampler)

        def after_step(self, policy, state):
            value, x = state.extras[hook].get("value"), state.x.clone()
            super().after_step(policy, state)
            if value is not None:
                k = len(state.x) // 3
                best = value.view(3, -1).topk(k, 1).indices
                left.append(torch.equal(state.x.view(3, k, -1), x.view(3, len(x) // 3, -1)[torch.arange(3)[:, None], best]))

    run(hook, 6, [Look()])
    assert sizes == [12, 12, 9, 6, 3, 3] and left == [True] * 5


def test_the_worst_are_replaced_by_copies():
    hook = DSearch(Level(), candidates=1, beam=4, width=1.0, replace=0.25)
    unique = []

    class Look(Hook):
        def after_step(self, policy, state):
            value = state.extras[hook].get("value")
            x = state.x.clone()
            super().after_step(policy, state)
            if value is not None:
                worst = x.view(3, 4, -1)[torch.arange(3), value.view(3, 4).argmin(1)]
                unique.append([len(torch.unique(g, dim=0)) for g in state.x.view(3, 4, -1)])
                assert not any((g == w).all(1).any() for g, w in zip(state.x.view(3, 4, -1), worst))

    run(hook, 6, [Look()])
    assert unique == [[3, 3, 3]] * 5


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="replace 0.1 of a beam of 5 is none"):
        DSearch(Level(), replace=0.1)
    with pytest.raises(ValueError, match="beam and width are 1 or more"):
        DSearch(Level(), beam=0)
