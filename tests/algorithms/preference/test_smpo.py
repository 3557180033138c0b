"""SmPO: smooth labels."""

import math
from unittest import mock

import pytest
import torch
from parts import T
from preferences import Brightness, at

from lit_align.algorithms.preference.smpo import SmPO


@pytest.mark.parametrize("win, lose", [(1.5, 1.2), (1.2, 1.5), (2.0, 0.0), (0.7, 0.7)])
def test_one_pair_has_the_coefficient_of_its_rewards_within_the_fixed_bounds(policy, win, lose):
    """beta gamma (2 p - 1) D, p the softmax of the two rewards scaled by the bounds, for a batch of one pair; a pair
    whose loser scores higher is learnt the other way round."""
    beta, gamma, (low, high), gap = 50.0, 10.0, (0.5, 2.5), 0.003
    smpo = SmPO(policy=policy, reward=Brightness(), beta=beta, gamma=gamma, reward_range=(low, high))
    image = lambda value: torch.full((1, *policy.latent_shape), value)
    data = {"prompt": ["a"], "index": [0], "win_latents": image(win), "lose_latents": image(lose)}
    with mock.patch.object(policy, "decode", lambda z: z[:, :3]):
        loss = smpo.loss(at(gap)._replace(batch=data))
    a, b = (math.exp((value - low) / (high - low)) for value in (win, lose))
    argument = beta * gamma * (2 * a / (a + b) - 1) * gap
    assert loss.item() == pytest.approx(math.log1p(math.exp(-argument)), abs=1e-6)
    assert (argument > 0) == (win > lose)


def test_a_pairs_label_does_not_depend_on_its_batch(policy):
    smpo = SmPO(policy=policy, reward=Brightness(), reward_range=(0.0, 1.0))
    bright = lambda *values: torch.stack([torch.full(policy.latent_shape, v) for v in values])
    with mock.patch.object(policy, "decode", lambda z: z[:, :3]):
        labels = lambda win, lose: smpo.label({"prompt": ["a"] * len(win), "win_latents": bright(*win), "lose_latents": bright(*lose)})
        torch.testing.assert_close(labels((0.9, 0.3), (0.1, 0.2)), torch.cat([labels((0.9,), (0.1,)), labels((0.3,), (0.2,))]))
        torch.testing.assert_close(labels((0.9,), (0.1,)), T([1 / (1 + math.exp(-0.8))]))


def test_its_defaults_are_the_released_ones(policy):
    smpo = SmPO(policy=policy, reward=Brightness(), reward_range=(0.0, 1.0))
    assert (smpo.eta, smpo.refinements, smpo.gamma) == (0.0, 1, 10.0)
    with pytest.raises(ValueError, match="lowest reward, then the highest"):
        SmPO(policy=policy, reward=Brightness(), reward_range=(1.0, 0.0))
