from unittest import mock

import torch
from online import online_preference
from parts import T

from lit_align.algorithms.preference.online_dpo import OnlineDPO
from lit_align.rewards.reward import Reward


def test_online_dpo_pairs_the_best_with_the_worst_and_leaves_alike_prompts_out():
    """Sample k of the batch scores as the k-th number of `score`, which is scored four at a time."""
    score = [0.2, 0.9, 0.1, 0.5, 0.5, 0.5, 0.0, 0.0, 1.0]

    class Given(Reward):
        name, differentiable = "given", False

        def forward(self, images, prompts):
            return T([score[int(k)] for k in images[:, 0, 0, 0]])

    method = online_preference(OnlineDPO, reward=Given(), samples_per_prompt=3, minibatch=4)
    latents = torch.arange(9.0).view(9, 1, 1, 1).expand(9, *method.policy.latent_shape)
    mock.patch.object(method, "draw_latents", return_value=latents).start()
    mock.patch.object(method.policy, "decode", lambda z: z).start()
    pairs = method.collect({"prompt": ["a", "b", "c"]})
    assert pairs["prompt"] == ["a", "c"]
    assert pairs["win_latents"][:, 0, 0, 0].tolist() == [1, 8] and pairs["lose_latents"][:, 0, 0, 0].tolist() == [2, 6]
    score[:] = [1.0] * 9
    assert method.collect({"prompt": ["a", "b", "c"]}) is None
