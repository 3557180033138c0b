"""GARDO's gate, reference and advantages by hand."""

import pytest
import torch
from online import policy_gradient, quiet, step
from parts import BlackBox, Darkness, T, alone, prompts, rollout, sgd, tiny, trained, trainer

from lit_align.algorithms.policy_gradient.gardo import GARDO
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def make(**kwargs):
    policy = tiny(StableDiffusion3)
    options = {"judges": [BlackBox()], "features": Darkness(), "samples_per_prompt": 4} | kwargs
    return quiet(policy_gradient(GARDO, policy, rollout=rollout(policy, 4), **options))


def scored(method, reward, *others):
    """Lets the method see these rewards in place of its own and its judges'."""
    method.rewards_of = lambda states, rows: T(reward)
    given = iter(T(r) for r in others)
    method.judge = lambda *args: next(given)
    return method


def test_good_samples_count_more_the_further_they_are_from_the_others():
    """Unit vectors at 0, 0, 90 and 180 degrees."""
    f = T([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    got = make().shaped(T([[4.0, 0.0, 2.0, 6.0]]), f)
    nearest = T([0.0, 0.0, 1.0, 1.0])  # 1 - cos
    want = T([1.0, -3.0, -1.0, 3.0])
    torch.testing.assert_close(got, torch.where(want > 0, want * nearest / 0.5, want))


def test_equal_rewards_have_no_advantage_and_equal_images_none_that_is_not_finite():
    assert not make().shaped(torch.full((2, 3), 1234.6), torch.randn(6, 5)).any()
    assert make().shaped(T([[0.0, 1.0]]), torch.ones(2, 3)).isfinite().all()


def test_the_kl_holds_back_the_samples_whose_reward_the_judges_doubt():
    reward, judge = [0.0, 1.0, 2.0, 3.0], [3.0, 1.0, 2.0, 0.0]  # the last wins by its reward alone
    method = scored(alone(make(gated=0.25)), reward, judge)
    method.collect({"prompt": ["a"]})
    assert method._gate.tolist() == [False, False, False, True]
    one = step(0.0, 1.0, mean=0.3, ref_mean=0.1)
    held, free = (method.loss(one._replace(rows=T([row]))) for row in (3, 0))
    kl = 0.04 * 0.2**2 / (2 * 0.5**2) * 0.1  # times t - s
    assert (held - free).item() == pytest.approx(kl, rel=1e-3) and method._kl == [pytest.approx(0.08)]


def test_several_judges_are_averaged():
    method = scored(alone(make(judges=[BlackBox(), BlackBox()], gated=0.25)), [3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [0.0, 3.0, 2.0, 1.0])
    method.collect({"prompt": ["a"]})
    assert method._gate.tolist() == [True, False, False, False]


def test_the_win_rate_counts_ties_half():
    torch.testing.assert_close(alone(make()).win_rate(T([0.0, 1.0, 1.0, 2.0])), T([0.125, 0.5, 0.5, 0.875]))


@pytest.mark.parametrize("max_kl,refresh,moves", [(1e-12, 100, True), (1e9, 100, False), (None, 1, True), (None, 100, False)])
def test_the_reference_follows_after_the_kl_bound_or_by_the_clock(tmp_path, max_kl, refresh, moves):
    method = make(reward=Darkness(1e3), optimizer=sgd(1.0), max_kl=max_kl, refresh_every=refresh, gated=1.0, updates=2, samples_per_prompt=4)
    trainer(tmp_path).fit(method, prompts(2, 1))
    named = dict(method.policy.denoiser.named_parameters())
    pairs = [(p, named[n.replace(".default.", ".reference.")]) for n, p in named.items() if ".default." in n]
    assert all(torch.equal(a, b) for a, b in pairs) == moves and len(trained(method.policy))


def test_it_needs_a_kl_and_a_judge():
    for options in ({"beta": 0.0}, {"judges": []}):
        with pytest.raises(ValueError, match="set beta above 0 and name one of model.judges"):
            make(**options)
