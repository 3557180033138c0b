"""Reward-weighted likelihood: own samples beside the data."""

import torch
from parts import T
from weighted import alone, scored

from lit_align.algorithms.reward_weighted.human_feedback import RewardWeighted


def test_reward_weighted_adds_the_data_at_its_own_rate():
    method = alone(RewardWeighted, beta=0.1, samples_per_prompt=2, minibatch=6)
    method.policy.add_reference()
    scored(method, T([0.5, -3.0, 0.25, 1.0]))
    data = torch.full((2, *method.policy.latent_shape), 9.0)
    collected = method.collect({"prompt": ["a", "b"], "index": [0, 1], "image_latents": data})
    assert collected["prompt"] == ["a", "a", "b", "b", "a", "b"]
    assert collected["image_latents"][:, 0, 0, 0].tolist() == [0, 2, 1, 3, 9, 9]
    torch.testing.assert_close(collected["weight"] / 6, T([0.5 / 4, 0.25 / 4, 0.0, 1.0 / 4, 0.1 / 2, 0.1 / 2]))
