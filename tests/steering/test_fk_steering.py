import math
from functools import cache

import pytest
import torch
from mixture import Mixture, tilted_mixture
from parts import Analytic, Level, spy

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.steering import particles as module
from lit_align.steering.fk_steering import FKSteering
from lit_align.steering.particles import systematic


class Clock(Hook):
    """Notes the steps after which something was resampled."""

    def __init__(self):
        self.seen = []

    def after_step(self, policy, state):
        before = state.x.clone()
        super().after_step(policy, state)
        if not torch.equal(before, state.x):
            self.seen.append(state.i)


class All(FKSteering):
    """Keeps every particle, in place of the best."""

    def on_end(self, policy, state):
        pass


def bell():
    """The exact flow of N(0.5, 0.2^2) in one dimension."""
    return Analytic(0.5, 0.2, shape=(1, 1, 1))


@cache
def particles(lmbda, k, groups, steps=40, **kwargs):
    """All particles' final values (groups, k) with their log-weights, before the best is picked."""
    hook = All(Level(), k, lmbda, **({"start": 0.2, "end": 0.9, "every": 0.1} | kwargs))
    torch.manual_seed(0)
    state = Sampler(steps, 1.0, DDIM(1.0), [hook], minibatch=k * groups)(bell(), ["x"] * groups)
    return state.x.view(groups, k), state.extras[hook]["logw"].view(groups, k)


def test_systematic_resampling_counts():
    log_w = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25] * 4]).log()
    for u in torch.linspace(0, 0.99, 50):
        first, second = systematic(log_w, u.repeat(2))
        assert torch.bincount(first, minlength=4).tolist() == [2, 1, 1, 0] and second.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("steps,want", [(100, {20, 40, 60, 80, 99}), (15, {3, 6, 9, 12, 14}), (4, {1, 2, 3})])
def test_the_schedule_is_in_fractions_of_the_run(steps, want):
    assert FKSteering(Level()).schedule(steps) == want


def test_without_tilt_one_particle_is_a_plain_sample_to_the_last_bit():
    sampler, seeds = Sampler(10, 1.0, DDIM(1.0)), [3, 4]
    steered = Sampler(10, 1.0, DDIM(1.0), [FKSteering(Level(), 1, 0.0)])
    assert torch.equal(steered(bell(), ["x"] * 2, seeds=seeds).x, sampler(bell(), ["x"] * 2, seeds=seeds).x)


class Weights(Hook):
    """Notes the rewards of the estimates x_0-hat, and the weights that an FKSteering inside makes of them."""

    def __init__(self, inner):
        self.inner, self.rewards, self.logw = inner, [], []

    def after_step(self, policy, state):
        super().after_step(policy, state)
        if state.i in self.inner.schedule(state.steps):
            self.rewards.append(self.inner.reward(state.x if state.i == state.steps - 1 else state.x0, state.prompts))
            self.logw.append(state.extras[self.inner]["logw"])


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_weights_are_the_products_of_the_potentials(potential):
    """Without resampling, and with rewards below 0: of lambda (r - previous r), lambda times the largest r so far, or
    lambda times the sum of r so far; at the end exp(lambda r(x_0))."""

    class Below(Level):
        def forward(self, images, prompts):
            return super().forward(images, prompts) - 5

    inner = All(Below(), 4, 3.0, potential=potential, ess=0.0)
    outer = Weights(inner)
    Sampler(10, 1.0, DDIM(1.0), [outer, inner])(bell(), ["x"] * 5, seeds=list(range(5)))
    r, got = torch.stack(outer.rewards), torch.stack(outer.logw)  # (5, 20) each
    one = {"difference": r.diff(dim=0, prepend=torch.zeros(1, 20)), "max": r.cummax(0).values, "sum": r.cumsum(0)}[potential]
    assert r.max() < 0
    torch.testing.assert_close(got[:-1], 3 * one.cumsum(0)[:-1])
    torch.testing.assert_close(got[-1], 3 * r[-1])


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_one_steps_weights_after_each_resampling(potential):
    """What resampling is given: the potential of this step alone, from the reward of the particle's own ancestor."""
    given, hook, seen = [], All(Level(), 4, 60.0, potential=potential, ess=2.0), []  # ess 2: always resampled

    class Own(Hook):
        """Notes each particle's reward before resampling, and its ancestor's running reward after it."""

        def after_step(self, policy, state):
            if state.i in hook.schedule(state.steps):
                r = hook.reward(state.x if state.i == state.steps - 1 else state.x0, state.prompts)
                seen.append([r, state.extras[hook]["reward"].clone(), state.extras[hook]["log_product"].clone()])
            super().after_step(policy, state)

    with spy(module, "systematic") as called:
        Sampler(10, 1.0, DDIM(1.0), [hook, Own()])(bell(), ["x"] * 5, seeds=list(range(5)))
    given = [call.args[0].flatten() for call in called.call_args_list]
    assert len(given) == len(seen) == 5
    for k, (log_w, (r, ancestor, product)) in enumerate(zip(given, seen)):
        if k == len(given) - 1:
            want = 60 * r - product
        elif potential == "difference":
            want = 60 * (r - ancestor)
        else:
            want = 60 * (torch.maximum(r, ancestor) if potential == "max" else r + ancestor)
        torch.testing.assert_close(log_w, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen[1][1], seen[0][0])  # after resampling a particle's past is its ancestor's


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_many_particles_follow_the_tilted_mixture(potential):
    """p(x) exp(lambda x) of two bumps in closed form: their weights change, and their places."""
    policy, lmbda, k, groups = Mixture(), 0.7, 512, 8
    when = {"start": 0.2, "end": 0.9, "every": 0.1} if potential == "difference" else {"start": 0.5, "every": 0.3}
    hook = All(Level(), k, lmbda, potential=potential, **when)
    torch.manual_seed(0)
    state = Sampler(40, 1.0, DDIM(1.0), [hook], minibatch=k * groups)(policy, ["x"] * groups)
    x, w = state.x.view(groups, k), state.extras[hook]["logw"].view(groups, k).softmax(1)
    mean, above = tilted_mixture(policy, lmbda)
    assert (w * x).sum(1).mean().item() == pytest.approx(mean, abs=0.06)
    assert (w * (x > 0)).sum(1).mean().item() == pytest.approx(above, abs=0.04)
    assert mean - tilted_mixture(policy, 0.0)[0] > 0.4


@pytest.mark.parametrize("potential,when", [
    ("difference", {}), ("max", {}), ("sum", {"start": 0.5, "every": 0.4}),  # sums tilt too far until the last step
])  # fmt: skip
def test_many_particles_follow_the_tilted_distribution(potential, when):
    """Weighted by what was not yet resampled, particles have the mean m + lambda d^2 of p(x) exp(lambda x)."""
    lmbda, k, groups = 4.0, 256, 12
    plain, _ = particles(0.0, k, groups)
    x, logw = particles(lmbda, k, groups, potential=potential, **when)
    mean, var = (logw.softmax(1) * x).sum(1), plain.var().item()  # of the sampler with this many steps
    want = plain.mean().item() + lmbda * var
    assert mean.mean().item() == pytest.approx(want, abs=4 * math.sqrt(var / (groups * k)) + 0.05)
    assert mean.mean() - plain.mean() > 0.08


def test_the_best_particle_of_each_prompt_is_returned():
    torch.manual_seed(0)
    seeds = list(range(40))
    sampler = Sampler(10, 1.0, DDIM(1.0), [FKSteering(Level(), 6, 2.0)])
    state = sampler(bell(), [f"p{i}" for i in range(40)], seeds=seeds)
    plain = sampler.plain()(bell(), ["x"] * 40, seeds=seeds)
    assert state.prompts == [f"p{i}" for i in range(40)] and len(state.x) == 40
    assert (state.x.mean() - plain.x.mean()) > 0.1
    assert state.calls["nfe_forward"] == 60  # per prompt


def test_particles_of_a_prompt_are_resampled_on_the_way_and_start_apart():
    clock, hook = Clock(), All(Level(), 8, 20.0)
    Sampler(15, 1.0, DDIM(1.0), [clock, hook])(bell(), ["x"] * 3, seeds=[0, 1, 2])
    assert len(clock.seen) >= 2 and set(clock.seen) <= {3, 6, 9, 12, 14}
    starts = []

    class Start(Hook):
        def on_init(self, policy, state):
            starts.append(state.x.flatten())

    Sampler(15, 1.0, DDIM(1.0), [All(Level(), 8, 20.0), Start()])(bell(), ["x"] * 3, seeds=[0, 1, 2])
    assert len(set(starts[0].tolist())) == 24


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="it would only take the best of 4 samples"):
        Sampler(10, 1.0, DDIM(0.0), [FKSteering(Level())])(bell(), ["x"])
    with pytest.raises(ValueError, match="lists FKSteering twice"):
        Sampler(10, 1.0, DDIM(1.0), [FKSteering(Level()), FKSteering(Level())])(bell(), ["x"])
    with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
        FKSteering(Level(), start=20, end=80, every=20)
