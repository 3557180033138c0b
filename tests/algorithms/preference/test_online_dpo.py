from unittest import mock

import pytest
import torch
from online import online_preference
from parts import Darkness, T
from preferences import at, collecting

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


def test_online_dpos_loss_is_diffusion_dpos(policy):
    method = OnlineDPO(policy=policy, reward=Darkness(), beta=1.0)
    assert method.loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)


def test_online_dpos_pairs_are_each_prompts_best_and_worst_samples_of_the_policy():
    method = collecting(OnlineDPO, reward=Darkness(), samples_per_prompt=3, minibatch=4)
    torch.manual_seed(1)
    pairs = method.collect({"prompt": ["a", "b"]})
    torch.manual_seed(1)
    with torch.no_grad():
        x = torch.cat([method.rollout(method.policy, p).x for p in (["a", "a", "a", "b"], ["b", "b"])]).unflatten(0, (2, 3))
        dark = 1 - method.policy.decode(x.flatten(0, 1)).mean((1, 2, 3)).view(2, 3)
    rows = torch.arange(2)
    torch.testing.assert_close(pairs["win_latents"], x[rows, dark.argmax(1)])
    torch.testing.assert_close(pairs["lose_latents"], x[rows, dark.argmin(1)])
    assert pairs["prompt"] == ["a", "b"] and method.logged["train/reward"] == pytest.approx(dark.mean().item(), abs=1e-5)
