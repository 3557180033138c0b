"""Combinations, by value."""

import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import derived_seed
from lit_align.diffusion.transition import DDIM
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.das import DAS
from lit_align.steering.dps import DPS
from lit_align.steering.fk_steering import FKSteering
from lit_align.steering.svdd import SVDD
from lit_align.steering.zero_order import ZeroOrderSearch

SEEDS = [3, 4, 5]


def sample(*hooks, eta=1.0, seeds=SEEDS):
    return Sampler(6, 1.0, DDIM(eta), list(hooks))(Analytic(), [""] * len(seeds), seeds=list(seeds))


def test_particles_around_candidates():
    """Each is what it is alone where the other does nothing, and their costs multiply."""
    svdd, fk = lambda m: SVDD(Level(), candidates=m), lambda k, lmbda: FKSteering(Level(), k, lmbda)
    assert torch.equal(sample(fk(1, 0.0), svdd(3)).x, sample(svdd(3)).x)
    assert torch.equal(sample(fk(3, 5.0), svdd(1)).x, sample(fk(3, 5.0)).x)
    both = sample(fk(3, 5.0), svdd(4))
    assert both.calls["nfe_forward"] == 3 * (1 + 4 * 5) == Sampler(6, 1.0, DDIM(1.0), [fk(3, 5.0), svdd(4)]).nfe()
    many = list(range(48))
    mean = lambda *hooks: sample(*hooks, seeds=many).x.mean()
    assert mean(fk(3, 5.0), svdd(4)) > max(mean(fk(3, 5.0)), mean(svdd(4))) + 0.02


@pytest.mark.parametrize("inner", [FKSteering(Level(), 3, 5.0), SVDD(Level(), candidates=3), DPS(Level(), 0.5)], ids=lambda h: type(h).__name__)
def test_best_of_n_around_a_hook_is_the_best_of_its_runs(inner):
    inside = Sampler(6, 1.0, DDIM(1.0), [inner])
    runs = torch.stack([inside(Analytic(), [""] * 3, seeds=[derived_seed(s, k) for s in SEEDS]).x for k in range(4)])
    best = runs.flatten(2).mean(2).argmax(0)
    assert torch.equal(BestOfN(Level(), 4, inside)(Analytic(), [""] * 3, seeds=SEEDS).x, runs[best, torch.arange(3)])


def test_searches_around_searches_share_no_sample():
    seen = []

    class Noted(Level):
        def forward(self, images, prompts):
            seen.append(images.flatten(1))
            return super().forward(images, prompts)

    BestOfN(Level(), 3, BestOfN(Noted(), 3, Sampler(4, 1.0, DDIM(1.0))))(Analytic(), [""] * 2, seeds=[0, 1])
    assert len(torch.cat(seen).unique(dim=0)) == 18
    ZeroOrderSearch(Level(), 1, 1, sampler=BestOfN(Noted(), 2, Sampler(4, 1.0)))(Analytic(), [""], seeds=[0])


def test_gradients_inside_particles():
    """DPS shifts the proposal that FK resamples; DAS takes a gradient through what DPS predicts."""
    many = list(range(48))
    mean = lambda *hooks: sample(*hooks, seeds=many).x.mean()
    assert mean(FKSteering(Level(), 3, 5.0), DPS(Level(), 0.2)) > mean(DPS(Level(), 0.2)) + 0.03
    calls = sample(FKSteering(Level(), 3, 5.0), DPS(Level(), 0.2)).calls
    assert calls["nfe_forward"] == calls["nfe_backward"] == 3 * 6
    assert mean(DAS(Level(), 2, 0.2), DPS(Level(), 0.2)) > mean(DAS(Level(), 2, 0.2))
