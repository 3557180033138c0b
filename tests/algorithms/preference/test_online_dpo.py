from unittest import mock

import pytest
import torch
from online import online_preference
from parts import Darkness, T, move, prompts, sgd, spy, tiny, trainer
from preferences import at, collecting

from lit_align.algorithms.preference.online_dpo import OnlineDPO
from lit_align.diffusion.sampler import Sampler
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


@pytest.mark.parametrize("samples_from", ["policy", "reference"])
def test_samples_are_drawn_from_the_policy_or_from_the_reference(samples_from):
    method = online_preference(OnlineDPO, samples_from=samples_from, samples_per_prompt=2)
    move(method.policy)
    with spy(method, "draw_latents") as draw:
        torch.manual_seed(0)
        method.collect({"prompt": ["a", "b"]})
    prompts = ["a", "a", "b", "b"]
    torch.manual_seed(0)
    own = method.draw_latents({"prompt": prompts})
    torch.manual_seed(0)
    with method.policy.reference():
        base = method.draw_latents({"prompt": prompts})
    assert not torch.allclose(own, base, atol=1e-3)
    torch.testing.assert_close(draw.results[0], base if samples_from == "reference" else own)


def test_an_optimizer_step_is_the_mean_over_draws_of_timestep_and_noise(tmp_path):
    method = OnlineDPO(policy=tiny(), reward=Darkness(), rollout=Sampler(2, 1.0), optimizer=sgd(0.0), draws=5, updates=2)
    with spy(method, "logged_loss") as measure, spy(method, "noise") as noise:
        t = trainer(tmp_path)
        t.fit(method, prompts(2))
    assert t.global_step == 2 and len(measure.results) == 10
    assert len({eps[0, 0, 0, 0].item() for _, eps in noise.results}) == 10
    want = torch.stack([loss.detach() for loss in measure.results]).mean()
    torch.testing.assert_close(t.callback_metrics["train/loss"], want)


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
