import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.rewards.multi_reward import MultiReward
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.random_search import RandomSearch, verdict

INSIDE, SEEDS = Sampler(4, 1.0, DDIM(1.0)), [5, 6, 7]


class Spread(Level):
    def forward(self, images, prompts):
        return -100 * images.flatten(1).std(1)


def test_with_one_verifier_it_is_best_of_n():
    one = RandomSearch(Level(), 5, INSIDE)(Analytic(), [""] * 3, seeds=SEEDS)
    assert torch.equal(one.x, BestOfN(Level(), 5, INSIDE)(Analytic(), [""] * 3, seeds=SEEDS).x)


def test_an_ensemble_counts_ranks():
    """By hand: whatever the verifiers' units, and ties share a rank."""
    scores = torch.tensor([[1.0, 900.0], [2.0, 100.0], [3.0, 500.0], [3.0, 500.0]])[:, None]  # (4, 1, 2)
    assert verdict(scores).flatten().tolist() == [(0.5 + 3.5) / 2, (1.5 + 0.5) / 2, (3.0 + 2.0) / 2, (3.0 + 2.0) / 2]
    assert torch.equal(verdict(scores), verdict(scores * torch.tensor([1.0, 1e-6])))
    both = MultiReward({"level": Level(), "spread": Spread()})
    state = RandomSearch(both, 6, INSIDE)(Analytic(), [""] * 3, seeds=SEEDS)
    reward = state.extras[next(iter(state.extras))]["reward"]
    torch.testing.assert_close(reward, torch.stack([Level()(state.x, None), Spread()(state.x, None)], 1))


def test_a_method_of_one_reward_says_so():
    both = MultiReward({"level": Level(), "spread": Spread()})
    with pytest.raises(ValueError, match="BestOfN takes one number per image and multi_reward gives 2"):
        BestOfN(both, 2, INSIDE)(Analytic(), [""])
