"""What the family shares: collections, minibatches, the weighted loss."""

from unittest import mock

import pytest
import torch
from parts import T, prompts, trainer
from preferences import still
from weighted import SEVERAL, alone, make, scored

from lit_align.algorithms.preference.sft import SFT
from lit_align.algorithms.reward_weighted.bond import BOND
from lit_align.algorithms.reward_weighted.human_feedback import RewardWeighted
from lit_align.algorithms.reward_weighted.max_min import MaxMin
from lit_align.algorithms.reward_weighted.rewards_in_context import RewardsInContext
from lit_align.algorithms.reward_weighted.rwr import RWR
from lit_align.policies.adapters import Full
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("cls", [RWR, BOND], ids=lambda c: c.__name__)
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_equal_rewards_give_the_gradient_of_sft(cls, family):
    method, n = alone(cls, policy=family("tiny", Full())), 4
    weight = method.weights(torch.full((2, 2), 0.7)).flatten()
    assert torch.equal(weight, torch.ones(n))
    batch = {"prompt": ["a", "a", "b", "b"], "image_latents": torch.randn(n, *method.policy.latent_shape)}
    sft = SFT(policy=method.policy)
    sft.trainer = method.trainer
    gradients = []
    for step in (lambda: sft.batch_loss(batch), lambda: method.batch_loss(batch | {"weight": weight})):
        torch.manual_seed(0)
        method.zero_grad()
        step().backward()
        gradients.append([p.grad.clone() for p in method.policy.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_the_loss_is_weighted_and_guided():
    method = alone(RWR, policy=StableDiffusion3("tiny", Full()), guidance_scale=5.0)
    policy, weight = method.policy, T([0.5, 2.0])
    x_0 = torch.randn(2, *policy.latent_shape)
    torch.manual_seed(3)
    with torch.no_grad():
        loss = method.batch_loss({"prompt": ["a", "b"], "image_latents": x_0, "weight": weight})
        torch.manual_seed(3)
        t = policy.process.shifted(torch.rand(2))
        eps = torch.randn_like(x_0)
        x_t = (1 - t).view(-1, 1, 1, 1) * x_0 + t.view(-1, 1, 1, 1) * eps
        null, cond = (policy.denoise(x_t, t, policy.condition(p)) for p in (["", ""], ["a", "b"]))
    errors = (null + 5 * (cond - null) - (eps - x_0)).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, (weight * errors).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_gets_the_weights_of_its_own_samples(monkeypatch, rank):
    rewards = T([[[0.1, 0.9], [0.2, 0.1]], [[0.6, 0.5], [0.7, 0.8]]])  # (ranks, B, K)
    method = alone(RWR, policy=still(), weighting="sparse", per_prompt=True, quantile=1.0, samples_per_prompt=2)
    monkeypatch.setattr(RWR, "global_rank", rank)
    method.all_gather = lambda x: rewards
    method.sample_and_judge = lambda batch: (torch.zeros(2, 2, *method.policy.latent_shape), rewards[rank])
    weight = method.collect({"prompt": ["a", "b"], "index": [0, 1]})["weight"]
    assert weight.tolist() == [[0.0, 2.0, 2.0, 0.0], [2.0, 0.0, 0.0, 2.0]][rank]


def test_minibatches_visit_every_weighted_sample_and_estimate_the_mean_over_all():
    method = alone(RWR, policy=still(), minibatch=3, updates=4)
    weight = T([0.0, 1.0, 2.0, 0.0, 3.0])
    parts = [m for (m,) in method.optimizer_steps({"prompt": list("abcde"), "image_latents": torch.arange(5.0), "weight": weight})]
    seen = torch.cat([part["image_latents"] for part in parts])
    assert [len(part["prompt"]) for part in parts] == [3] * 4
    assert [int((seen == i).sum()) for i in range(5)] == [0, 4, 4, 0, 4]
    mean = torch.cat([part["weight"] for part in parts]).mean()
    assert mean.item() == pytest.approx(weight.mean().item())
    parts = [m for (m,) in method.optimizer_steps({"prompt": ["a", "b"], "weight": T([0.0, 0.0])})]  # ranks run the same forwards
    assert [part["weight"].tolist() for part in parts] == [[0.0] * 3] * 4


@pytest.mark.parametrize("cls", [RWR, MaxMin], ids=lambda c: c.__name__)
def test_a_collection_is_judged_in_minibatches_each_sample_for_its_prompt(cls):
    method, asked = alone(cls, samples_per_prompt=3, minibatch=4), []
    judge = method.reward.forward
    method.draw_latents = lambda rows: torch.tensor([ord(p) for p in rows["prompt"]]).view(-1, 1, 1, 1).expand(-1, *method.policy.latent_shape) / 256
    method.policy.decode = lambda z: z[:, :1].expand(-1, 3, -1, -1)
    method.reward.forward = lambda images, prompts: asked.append((images, prompts)) or judge(images, prompts)
    latents, reward = method.sample_and_judge({"prompt": ["a", "b"]})
    assert [len(images) for images, _ in asked] == [4, 2]
    images, prompts = torch.cat([images for images, _ in asked]), [p for _, part in asked for p in part]
    assert [chr(round(v * 256)) for v in images[:, 0, 0, 0].tolist()] == prompts == ["a", "b"] * 3
    assert latents.shape[:2] == reward.shape[:2] == (2, 3)
    dark = reward[..., 0] if cls is MaxMin else reward
    torch.testing.assert_close(dark, 1 - T([[97.0] * 3, [98.0] * 3]) / 256)


def test_a_collection_without_weight_keeps_its_steps(tmp_path):
    method = make(RWR, updates=3, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    t = trainer(tmp_path)
    with mock.patch.object(method, "weights", torch.zeros_like):
        t.fit(method, prompts(2))
    assert t.global_step == 3 and all(torch.equal(before[name], p) for name, p in method.named_parameters())


def test_effective_sample_size():
    method = scored(alone(RWR, samples_per_prompt=4), T([4.0, 5.0, 6.0, 7.0]))
    method.collect({"prompt": ["a"], "index": [0]})
    w = T([0.722629, 0.882621, 1.078035, 1.316715])
    assert method.logged["train/effective_sample_size"] == pytest.approx(16 / w.square().sum().item(), abs=1e-4)
    assert method.logged["train/reward"] == pytest.approx(5.5)


@pytest.mark.parametrize("cls", [RewardWeighted, BOND], ids=lambda c: c.__name__)
def test_samples_come_from_the_reference(cls):
    method = alone(cls, samples_per_prompt=1)
    method.policy.add_reference(moving=method.moves_reference)
    with torch.no_grad():
        base = method.rollout(method.policy, ["a"], x=torch.ones(1, *method.policy.latent_shape)).x
        for p in method.policy.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn_like(p)
    method.draw_latents = lambda rows: method.rollout(method.policy, rows["prompt"], x=torch.ones(1, *method.policy.latent_shape)).x
    torch.testing.assert_close(method.sample_and_judge({"prompt": ["a"]})[0][:, 0], base)
    assert not torch.allclose(method.draw_latents({"prompt": ["a"]}), base, atol=1e-3)


@pytest.mark.parametrize("cls", [RWR, RewardsInContext], ids=lambda c: c.__name__)
def test_a_nan_reward_is_named(tmp_path, cls):
    method = make(cls)
    value = lambda p: T([[float("nan") if x == "p1" else 0.5] * (2 if cls in SEVERAL else 1) for x in p])
    method.reward.forward = lambda image, p: value(p) if cls in SEVERAL else value(p)[:, 0]
    with pytest.raises(FloatingPointError, match="not finite at step 0 for 'p1'"):
        trainer(tmp_path).fit(method, prompts(2))


def test_the_first_batch_of_an_epoch_is_logged_like_the_others(tmp_path):
    t = trainer(tmp_path)
    t.fit(make(RWR, updates=1), prompts(2, 1))
    assert "train/reward" in t.callback_metrics
