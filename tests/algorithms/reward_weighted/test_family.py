"""What every reward-weighted method has in common. The methods are found by walking the subclasses: a new file is
tested unasked."""

import pytest
import torch
from parts import POLICIES, T, by_name, methods_of, prompts, trained, trainer
from preferences import attached, still
from weighted import SEVERAL, make

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood
from lit_align.algorithms.reward_weighted.rewards_in_context import RewardsInContext

METHODS = methods_of(WeightedLikelihood)
DECIDING = [cls for cls in METHODS if cls is not RewardsInContext]  # whose prompts, not weights, hold the rewards


def weights(cls, reward):
    """From rewards (P, K), which every annotator gives alike."""
    method = attached(make(cls, policy=still()))
    return method.weights(torch.stack([reward, reward], 2) if cls in SEVERAL else reward)


REWARD = T([[0.3, 0.9, 0.1, 0.5], [0.8, 0.2, 0.6, 0.4]])


def test_the_walk_finds_the_files():
    assert {"RWR", "RAFT", "BOND", "MaxMin", "RewardWeighted", "RewardsInContext"} <= {cls.__name__ for cls in METHODS}


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_weights_are_one_per_sample_and_none_is_negative(cls):
    for reward in (REWARD, REWARD - 5, torch.full((2, 4), 0.7)):
        w = weights(cls, reward)
        assert w.shape == reward.shape and (w >= 0).all() and w.isfinite().all()


@pytest.mark.parametrize("cls", DECIDING, **by_name)
def test_a_better_sample_weighs_at_least_as_much_and_a_turned_reward_turns_that(cls):
    for reward in (REWARD, 1 - REWARD):
        w = weights(cls, reward)
        assert (w.gather(1, reward.argsort(1)).diff() >= 0).all() and w.max() > w.min()


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_the_order_of_prompts_and_of_samples_does_not_matter(cls):
    w, order = weights(cls, REWARD), [2, 0, 3, 1]
    torch.testing.assert_close(weights(cls, REWARD.flip(0)), w.flip(0))
    torch.testing.assert_close(weights(cls, REWARD[:, order]), w[:, order])


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_each_sample_pulls_by_its_weight(cls):
    """A sample of weight 2 pulls twice, one of weight 0 not at all."""
    method = attached(make(cls, policy=still()))
    x_0 = torch.randn(2, *method.policy.latent_shape)

    def gradient(weight):
        torch.manual_seed(3)
        loss = method.batch_loss({"prompt": ["a", "b"], "image_latents": x_0, "weight": T(weight)})
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(method))])

    one, other, both = gradient([1.0, 0.0]), gradient([0.0, 1.0]), gradient([2.0, 0.5])
    torch.testing.assert_close(both, 2 * one + 0.5 * other, atol=1e-6, rtol=1e-3)
    assert one.any() and other.any() and not gradient([0.0, 0.0]).any()


def images(policy, n=2):
    return {"image": torch.rand(n, 3, policy.resolution, policy.resolution, generator=torch.Generator().manual_seed(1))}


@POLICIES
@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_one_step_moves_what_is_trained_and_nothing_else(tmp_path, cls, family, adapter):
    method = make(cls, family("tiny", adapter), updates=1, samples_per_prompt=2, refresh_every=0)
    frozen = lambda: [p for p in [*method.policy.pipe.vae.parameters(), *method.parameters()] if not p.requires_grad]
    trained = [p for p in method.policy.parameters() if p.requires_grad]
    before, still = [p.detach().clone() for p in trained], [p.detach().clone() for p in frozen()]
    t = trainer(tmp_path)
    t.fit(method, prompts(2, **images(method.policy)))
    assert t.global_step == 1
    moved = [not torch.equal(a, b) for a, b in zip(before, trained, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert all(torch.equal(a, b) for a, b in zip(still, frozen()))
