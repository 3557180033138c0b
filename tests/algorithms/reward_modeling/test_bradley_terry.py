"""Rewards of images, learnt from which of two was preferred."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from parts import T, trainer
from safetensors.torch import load_file
from torch import nn

from lit_align.algorithms.reward_modeling.bradley_terry import BradleyTerry
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.jpeg import JPEGCompressibility
from lit_align.rewards.reward import Reward


class Channels(Reward):
    """A weight for each colour channel, and a batch norm so that there is a state besides weights."""

    name, differentiable = "channels", True

    def __init__(self):
        super().__init__()
        self.norm, self.w = nn.BatchNorm1d(3, affine=False), nn.Parameter(T([0.3, -0.2, 0.1]))
        self.seen = []

    def forward(self, images, prompts):
        assert len(images) == len(prompts)
        self.seen.append(list(prompts))
        return self.norm(images.mean((2, 3))) @ self.w


def pairs(n=6, seed=0, **more):
    win, lose = torch.rand(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "win": win, "lose": lose, **more}


def loader(*batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def make(reward=None, lr=0.1, **kwargs):
    return BradleyTerry(reward=reward or Channels(), optimizer=lambda p: torch.optim.SGD(p, lr=lr), **kwargs)


def quiet(method):
    method.logged = {}
    method.log_mean = lambda name, value, n: method.logged.update({name: float(value)})
    return method


def test_the_loss_is_bradley_terrys_and_a_tie_is_half_a_win():
    method, batch, w = quiet(make()).eval(), pairs(), T([0.3, -0.2, 0.1])
    d = (batch["win"].mean((2, 3)) - batch["lose"].mean((2, 3))) @ w / math.sqrt(1 + 1e-5)
    assert (d > 0).any() and (d < 0).any()
    torch.testing.assert_close(method.batch_loss(batch), -torch.log(1 / (1 + torch.exp(-d))).mean())
    assert method.logged["train/accuracy"] == pytest.approx((d > 0).float().mean().item())
    assert method.reward.seen[-1] == batch["prompt"] * 2
    label = T([1.0, 0.5, 0.0, 1.0, 0.5, 1.0])
    want = -(label * F.logsigmoid(d) + (1 - label) * F.logsigmoid(-d)).mean()
    torch.testing.assert_close(method.batch_loss(batch | {"label": label}), want)
    same = batch | {"lose": batch["win"]}
    assert method.batch_loss(same).item() == pytest.approx(math.log(2)) and method.logged["train/accuracy"] == 0.5


def test_centering_puts_a_captions_level_between_its_two_images():
    batch = pairs()
    plain, method = (quiet(make(Weights(), **more)) for more in ({}, {"center": 0.5}))
    total = (batch["win"] + batch["lose"]).mean((2, 3)) @ T([0.3, -0.2, 0.1])
    torch.testing.assert_close(method.batch_loss(batch), plain.batch_loss(batch) + 0.5 * total.square().mean())


class Weights(Reward):
    """A weight for each colour channel."""

    name, differentiable = "weights", True

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(T([0.3, -0.2, 0.1]))

    def forward(self, images, prompts):
        return images.mean((2, 3)) @ self.w


def test_one_step_is_the_gradient_by_hand_and_moves_the_reward_alone(tmp_path):
    method, batch, w = make(Weights(), lr=0.5), pairs(), T([0.3, -0.2, 0.1])
    policy = [p.detach().clone() for p in method.policy.parameters()]
    trainer(tmp_path, max_steps=1).fit(method, loader(batch))
    gap = (batch["win"] - batch["lose"]).mean((2, 3))  # (B, 3)
    torch.testing.assert_close(method.reward.w.detach(), w + 0.5 * (torch.sigmoid(-gap @ w)[:, None] * gap).mean(0))
    assert all(torch.equal(a, b) for a, b in zip(policy, method.policy.parameters()))
    assert [n for n, p in method.named_parameters() if p.requires_grad] == ["reward.w"]


def test_it_finds_what_is_preferred_and_leaves_it_on_disk(tmp_path):
    torch.manual_seed(0)
    batches = []
    for seed in range(40):
        batch = pairs(16, seed)
        red = lambda x: x[:, 0].mean((1, 2)) - x[:, 2].mean((1, 2))  # red is liked and blue is not
        swap = red(batch["win"]) < red(batch["lose"])
        batch["win"][swap], batch["lose"][swap] = batch["lose"][swap].clone(), batch["win"][swap].clone()
        batches.append(batch)
    method, t = make(lr=2.0), trainer(tmp_path)
    t.fit(method, loader(*batches[:30]), loader(*batches[30:]))
    w = method.reward.w.detach()
    assert w[0] > 0.5 and w[2] < -0.5 and w[1].abs() < 0.5 * w[0]
    assert t.callback_metrics["val/accuracy"] > 0.9
    stored = load_file(tmp_path / "reward/reward.safetensors")
    assert torch.equal(stored["w"], w) and torch.equal(stored["norm.running_mean"], method.reward.norm.running_mean)


def test_stopping_and_going_on_changes_no_bit(tmp_path):
    def run(folder, steps, ckpt=None):
        method = BradleyTerry(reward=Channels(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.1))
        keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)
        t = trainer(folder, max_epochs=-1, max_steps=steps, callbacks=[keep], enable_checkpointing=True)
        t.fit(method, loader(*(pairs(seed=i) for i in range(2))), ckpt_path=ckpt)
        return method.reward.state_dict(), torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]

    whole, saved = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts, _ = run(tmp_path / "parts", 4, str(tmp_path / "parts/last.ckpt"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole) and whole["norm.num_batches_tracked"] == 4
    assert set(saved) == {f"reward.{k}" for k in whole}


def test_any_reward_model_can_be_trained(tmp_path):
    method = make(CLIPScore("tiny"))
    before = {n: p.detach().clone() for n, p in method.reward.named_parameters()}
    trainer(tmp_path, max_steps=1).fit(method, loader(pairs()))
    moved = {n for n, p in method.reward.named_parameters() if not torch.equal(p, before[n])}
    assert any("vision_model" in n for n in moved) and any("text_model" in n for n in moved)


def test_what_cannot_be_trained_on_is_named():
    with pytest.raises(ValueError, match="compressibility has no weights to train"):
        make(JPEGCompressibility())
    batch = pairs()
    latents = {"win_latents": batch.pop("win"), "lose_latents": batch.pop("lose")}
    with pytest.raises(ValueError, match="set --data.encode_once false"):
        make().check(batch | latents)
