import math

import pytest
import torch
from mixture import Mixture, tilted
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.rejection import RejectionSampling

INSIDE = Sampler(8, 1.0, DDIM(1.0))


class Step(Level):
    """1 above 0, else 0."""

    def forward(self, images, prompts):
        return (super().forward(images, prompts) > 0).float()


def test_samples_follow_the_tilted_mixture():
    """exp(r / alpha) with r 1 above 0: the odds of the two bumps grow by exp(1 / alpha)."""
    n, alpha = 3000, 1.0
    torch.manual_seed(0)
    plain = INSIDE(Mixture(), [""] * n).x.flatten()
    state = RejectionSampling(Step(), alpha, 1.0, 64, INSIDE)(Mixture(), [""] * n)
    share = (plain > 0).float().mean().item()
    want = share * math.e / (share * math.e + 1 - share)
    assert (state.x > 0).float().mean().item() == pytest.approx(want, abs=0.03) and want - share > 0.15
    draws = 1 / (share + (1 - share) * math.exp(-1))
    assert state.calls["nfe_forward"] / 8 == pytest.approx(draws, rel=0.05) and state.calls["reward_calls"] == state.calls["nfe_forward"] / 8
    above = plain[plain > 0]
    assert state.x[state.x > 0].mean().item() == pytest.approx(above.mean().item(), abs=0.03)  # within a bump nothing changes


def test_a_smooth_reward_tilts_by_its_exponential():
    torch.manual_seed(0)
    plain = INSIDE(Mixture(), [""] * 20000).x.flatten()
    x = RejectionSampling(Level(), 1.0, 3.0, 400, INSIDE)(Mixture(), [""] * 1000).x.flatten()
    mean, above = tilted(plain, 1.0)
    assert x.mean().item() == pytest.approx(mean, abs=0.1) and (x > 0).float().mean().item() == pytest.approx(above, abs=0.05)


def test_what_no_draw_was_accepted_for_gets_its_best_and_a_warning():
    seeds = list(range(10))
    with pytest.warns(UserWarning, match="accepted none of the draws of 10 of 10 prompts"):
        state = RejectionSampling(Level(), 1e-3, 50.0, 5, INSIDE)(Analytic(), [""] * 10, seeds=seeds)
    assert torch.equal(state.x, BestOfN(Level(), 5, INSIDE)(Analytic(), [""] * 10, seeds=seeds).x)


def test_an_accepted_first_draw_is_the_plain_sample():
    state = RejectionSampling(Level(), 1e9, 1e3, 5, INSIDE)(Analytic(), [""] * 10, seeds=list(range(10)))
    assert torch.equal(state.x, INSIDE(Analytic(), [""] * 10, seeds=list(range(10))).x) and state.calls["nfe_forward"] == 8


def test_it_says_what_it_cannot_do():
    with pytest.warns(UserWarning, match="level gave .*, above its bound 0.5, so samples do not follow"):
        RejectionSampling(Level(), 0.1, 0.5, 5, INSIDE)(Analytic(), [""] * 10)
    with pytest.raises(ValueError, match="alpha greater than 0"):
        RejectionSampling(Level(), 0.0)
