import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.state import derived_seed
from lit_align.diffusion.transition import DDIM
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.fk_steering import FKSteering

INSIDE = Sampler(4, 1.0, DDIM(1.0))
SEEDS = [5, 6, 7]


class Wanted(Level):
    """Prefers samples near the row's `target`."""

    def forward(self, images, prompts, target):
        return -(images.flatten(1).mean(1) - torch.tensor(target)).abs()


def test_further_seeds_are_seeds_of_their_own():
    noise = [torch.randn(4, generator=torch.Generator().manual_seed(derived_seed(s, k))) for s in (0, 1) for k in range(50)]
    assert derived_seed(7, 0) == 7 and len({tuple(n.tolist()) for n in noise}) == 100


def test_the_best_of_n_samples_is_returned_and_the_first_is_the_plain_one():
    policy = Analytic()
    candidates = torch.stack([INSIDE(policy, [""] * 3, seeds=[derived_seed(s, k) for s in SEEDS]).x for k in range(5)])
    best = BestOfN(Level(), 5, INSIDE)(policy, [""] * 3, seeds=SEEDS)
    level = candidates.flatten(2).mean(2)
    assert torch.equal(best.x, candidates[level.argmax(0), torch.arange(3)])
    assert torch.equal(BestOfN(Level(), 1, INSIDE)(policy, [""] * 3, seeds=SEEDS).x, candidates[0])
    assert best.calls["nfe_forward"] == 20


def test_neighbouring_prompts_have_candidates_of_their_own():
    """Seeds 0, 1, 2, ..., as prompt files give them: no candidate of a prompt is one of another."""
    seen = []

    class Noted(Level):
        def forward(self, images, prompts):
            seen.append(images.flatten(1))
            return super().forward(images, prompts)

    BestOfN(Noted(), 6, INSIDE)(Analytic(), [""] * 4, seeds=[0, 1, 2, 3])
    assert len(torch.cat(seen).unique(dim=0)) == 24


def test_rewards_see_the_columns_of_the_rows():
    columns = {"target": [0.0, 1.5, 3.0], "unused": ["a", "b", "c"]}
    state = BestOfN(Wanted(), 32, INSIDE)(Analytic(), [""] * 3, columns=columns, seeds=SEEDS)
    level = state.x.flatten(1).mean(1)
    assert level[0] < level[1] < level[2]


def test_it_goes_around_steering_and_around_itself():
    policy = Analytic()
    steered = Sampler(4, 1.0, DDIM(1.0), [FKSteering(Level(), 2, 5.0)])
    twice = BestOfN(Level(), 2, BestOfN(Level(), 3, steered))
    state = twice(policy, [""] * 3, seeds=SEEDS)
    assert state.x.shape == (3, 1, 2, 2) and state.calls["nfe_forward"] == 2 * 3 * 2 * 4
    assert isinstance(twice.plain(), Sampler) and not twice.plain().is_steered and twice.is_steered


def test_what_is_selected_cannot_be_trained_through():
    for given in ({"grad": all_steps(4)}, {"record": True}):
        with pytest.raises(ValueError, match="BestOfN selects among finished samples"):
            BestOfN(Level(), 2, INSIDE)(Analytic(), [""], **given)
    with pytest.raises(ValueError, match="n is 0; draw at least one sample"):
        BestOfN(Level(), 0)
