"""LaSRO: a surrogate of latents learns a black-box reward, and the policy follows the surrogate's gradient."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from parts import BlackBox, Darkness, T, prompts, trainer
from torch import nn

from lit_align.algorithms.parts.consistency import consistency_loss
from lit_align.algorithms.reward_gradient.lasro import LaSRO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.latent import LatentReward
from lit_align.rewards.step_reward import StepReward

FAMILIES = [StableDiffusion, StableDiffusionXL, StableDiffusion3]


name = lambda x: getattr(x, "__name__", None) or type(x).__name__


class Linear(StepReward):
    """w . mean(z) + v s, over the channels of z and its time s."""

    needs_x0 = False

    def __init__(self, scale=1.0):
        super().__init__()
        self.w, self.v = nn.Parameter(scale * T([1.0, -0.5, 0.2, 0.4])), nn.Parameter(T(0.0))
        self.times = []

    def forward(self, policy, x_t, x_0, t, texts):
        assert len(x_t) == len(t) == len(texts)
        self.times.append(t)
        return x_t.mean((2, 3)) @ self.w + self.v * t


class Same(BlackBox):
    def forward(self, images, texts):
        return torch.ones(len(images))


def make(policy=None, surrogate=None, eta=1.0, attach=True, **kwargs):
    torch.manual_seed(1)
    policy = policy or StableDiffusion("tiny", LoRA(rank=2))
    defaults = {
        "reward": BlackBox(),
        "rollout": Sampler(2, 2.0, DDIM(eta)),
        "samples_per_prompt": 3,
        "minibatch": 4,
        "pretrain": 0,
    }
    defaults["optimizer"] = lambda groups: torch.optim.SGD(groups, lr=1.0)
    method = LaSRO(policy=policy, surrogate=surrogate or Linear(), **(defaults | kwargs))
    generator = torch.Generator().manual_seed(7)
    for p in trained(method.policy):
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    if attach:
        method.logged = {}
        method.trainer = trainer(None)
        method.log_mean = lambda name, value, n: method.logged.update({name: float(value)})
    return method


def trained(module):
    return [p for p in module.parameters() if p.requires_grad]


def test_the_buffer_keeps_the_best_and_the_worst_of_each_prompt_at_each_step():
    method, drawn = make(), []
    estimates = method.estimates
    method.estimates = lambda cond: drawn.append(estimates(cond)) or drawn[-1]
    method.collect({"prompt": ["a", "b"]})
    z, pairs = torch.stack(drawn, 2), method.replay.pairs  # (n, B, K, ...)
    assert (
        z.shape[:3] == (2, 2, 3) and pairs["prompt"] == ["a", "b", "a", "b"] and pairs["step"].tolist() == [0, 0, 1, 1]
    )
    for row in range(4):
        k, b = divmod(row, 2)
        dark = 1 - method.policy.decode(z[k, b]).mean((1, 2, 3))
        assert torch.equal(pairs["win"][row], z[k, b, dark.argmax()]) and torch.equal(
            pairs["lose"][row], z[k, b, dark.argmin()]
        )
    final = [1 - method.policy.decode(z[1, :, i]).mean((1, 2, 3)).mean() for i in range(3)]
    assert method.logged["train/reward"] == pytest.approx(sum(final).item() / 3, abs=1e-6)


def test_ties_teach_nothing(tmp_path):
    method = make(reward=Same(), pretrain=10, attach=False)
    before = [p.detach().clone() for p in method.parameters()]
    trainer(tmp_path).fit(method, prompts())
    assert method.replay.pairs["prompt"] == [] and method.replay.draw(4) is None
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters()))


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=name)
def test_z_k_is_the_estimate_of_x_0_after_step_k(family):
    """Against diffusers' own scheduler."""
    method = make(family("tiny", LoRA(rank=2)), eta=0.0)
    policy, flow = method.policy, family is StableDiffusion3
    cond = policy.condition(["a", "b"])
    with torch.no_grad():
        torch.manual_seed(3)
        z = method.estimates(cond)
        torch.manual_seed(3)
        x, scheduler = torch.randn(2, *policy.latent_shape), policy.pipe.scheduler
        scheduler.set_timesteps(2)
        for k, t in enumerate(scheduler.timesteps):
            time = (t / 1000 if flow else t).expand(2)
            pred = policy.denoise(x, time, cond, 2.0)
            x_0 = x - t / 1000 * pred if flow else scheduler.step(pred, t, x).pred_original_sample
            x = scheduler.step(pred, t, x).prev_sample
            torch.testing.assert_close(z[k], x if k == 1 else x_0, atol=1e-4, rtol=1e-4)


def test_the_surrogates_loss_is_bradley_terrys_of_each_steps_output():
    method = make()
    win, lose = torch.randn(2, 3, *method.policy.latent_shape)
    pairs = {"prompt": ["a", "b", "c"], "step": T([0, 1, 1]), "win": win, "lose": lose}
    gap = (win - lose).mean((2, 3)) @ T([1.0, -0.5, 0.2, 0.4])
    torch.testing.assert_close(method.ranking(pairs), torch.log1p(torch.exp(-gap)).mean())
    assert method.logged["train/accuracy"] == pytest.approx((gap > 0).float().mean().item())
    grid = method.policy.process.timesteps(2)
    assert method.surrogate.times[-1].tolist() == [grid[1], grid[2], grid[2]] * 2


def test_scores_are_normalised_by_running_moments_and_clipped():
    method = make(momentum=0.9, clip=1.0)
    first, then = T([[1.0, 3.0], [0.0, 4.0]]), T([[5.0, 5.0], [2.0, 90.0]])
    torch.testing.assert_close(method.normalised(first), T([[-1.0, 1.0], [-1.0, 1.0]]), atol=1e-4, rtol=0)
    then.requires_grad_()
    got = method.normalised(then)
    mean, var = T([0.9 * 2 + 0.5, 0.9 * 2 + 4.6]), T([0.9 * 1.0, 0.9 * 4 + 0.1 * 44.0**2])
    torch.testing.assert_close(method.moments, torch.stack([mean, var], 1))
    torch.testing.assert_close(got, ((then - mean[:, None]) / var.sqrt()[:, None]).clamp(-1, 1))
    (grad,) = torch.autograd.grad(got.sum(), then)
    assert got[1, 1] == 1 and grad[1, 1] == 0  # out of reach: teaches nothing
    assert grad[1, 0] == pytest.approx(1 / math.sqrt(var[1].item()), rel=1e-4)  # the moments are constants


def test_the_policys_gradient_passes_through_every_step_and_no_decoder():
    method = make(anchor_weight=0.0, weights=(0.5, 2.0), clip=100.0, momentum=1.0)
    method.moments = T([[0.1, 4.0], [-0.2, 0.25]])
    policy, texts = method.policy, ["a", "b"]
    cond, w = policy.condition(texts), T([1.0, -0.5, 0.2, 0.4])
    policy.calls.clear()
    torch.manual_seed(3)
    loss = method.improvement(texts, cond)
    got = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(policy))])
    assert policy.calls["decodes"] == 0
    torch.manual_seed(3)
    x = torch.randn(2, *policy.latent_shape)
    t, s, end = (t.expand(2) for t in policy.process.timesteps(2))
    z_1, eps = method.rollout.predict(policy, x, t, cond)
    x = method.rollout.transition(policy.process, x, z_1, eps, t, s).sample(torch.randn_like(x))
    z_2, eps = method.rollout.predict(policy, x, s, cond)
    last = method.rollout.transition(policy.process, x, z_2, eps, s, end)
    z_2 = last.sample(torch.randn_like(x)) if last.std.any() else last.mean
    r_1, r_2 = (z.mean((2, 3)) @ w for z in (z_1, z_2))
    want = -(0.5 * (r_1 - 0.1) / 2 + 2 * (r_2 + 0.2) / 0.5).mean()
    torch.testing.assert_close(loss, want, atol=1e-4, rtol=1e-4)
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(want, trained(policy))])
    assert by_hand.norm() > 0 and (got - by_hand).norm() < 2e-3 * by_hand.norm()


def test_the_anchor_pulls_the_policy_alone_towards_what_the_reference_leads_to():
    """By hand, with a teacher that is another network than the student: its gradient, and its sign in the loss."""
    method = make(anchor_weight=0.0)
    policy, cond = method.policy, method.policy.condition(["a", "b"])
    x_0, grid = torch.randn(2, *policy.latent_shape), policy.process.timesteps(50)
    torch.manual_seed(3)
    got = consistency_loss(policy, method.rollout, x_0, cond).mean()
    torch.manual_seed(3)
    i = torch.randint(50, (2,))
    t, s = grid[i], grid[i + 1]
    x_t = policy.process.add_noise(x_0, torch.randn_like(x_0), t)
    with torch.no_grad():
        with policy.reference():
            z, eps = method.rollout.predict(policy, x_t, t, cond)
        target = method.rollout.predict(policy, policy.process.add_noise(z, eps, s), s, cond)[0]
        wrong = method.rollout.predict(policy, policy.process.add_noise(*method.rollout.predict(policy, x_t, t, cond), s), s, cond)[0]
    assert not torch.allclose(target, wrong, atol=1e-4)
    want = (method.rollout.predict(policy, x_t, t, cond)[0] - target).square().mean()
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(loss, trained(policy)) for loss in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
    losses = []
    for weight in (0.0, 2.0):
        torch.manual_seed(4)
        method.anchor_weight, method.moments = weight, torch.zeros(0)
        losses.append(method.improvement(["a", "b"], cond).item())
    assert losses[1] - losses[0] == pytest.approx(2 * method.logged["train/anchor"], rel=1e-4) and losses[1] > losses[0]


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=name)
@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_each_update_moves_its_own_part_and_nothing_else(tmp_path, family, adapter):
    policy = family("tiny", adapter)
    method = make(
        policy,
        LatentReward(StableDiffusion("tiny"), guidance_scale=1.0, projection_dim=4),
        attach=False,
        pretrain=1,
        updates=2,
    )
    method.optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)  # would move all it steps
    parts = {"policy": trained(policy), "surrogate": trained(method.surrogate)}
    rest = [
        p
        for m in (policy.pipe.vae, *policy._encoders(), *policy.pipe.components.values())
        if isinstance(m, nn.Module)
        for p in m.parameters()
        if not p.requires_grad
    ]
    copy = lambda ps: [p.detach().clone() for p in ps]
    frozen, log, batch_loss, last = copy(rest), [], method.batch_loss, {}

    def watched(minibatch):
        now = {k: copy(ps) for k, ps in parts.items()}
        if last:
            log.append({k for k in parts if any(not torch.equal(a, b) for a, b in zip(last[k], now[k]))})
        last.update(now)
        return batch_loss(minibatch)

    method.batch_loss = watched
    t = trainer(tmp_path)
    t.fit(method, prompts(2, 3))
    assert t.global_step == 2 + 3 + 3 and "train/surrogate" in t.callback_metrics
    assert log == [{"surrogate"}] * 4 + [{"policy"}] + [{"surrogate"}] * 2
    assert all(torch.equal(a, b) for a, b in zip(frozen, rest))


def test_stopping_and_going_on_changes_no_bit(tmp_path):
    def run(folder, steps, ckpt=None):
        method = make(attach=False, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2), pretrain=1)
        keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
        t = trainer(folder, max_epochs=-1, max_steps=steps, callbacks=[keep], enable_checkpointing=True)
        t.fit(method, prompts(2, 2), ckpt_path=ckpt, weights_only=False if ckpt else None)
        return method

    whole = run(tmp_path / "whole", 7)
    run(tmp_path / "parts", 3)
    saved = torch.load(tmp_path / "parts/last.ckpt", weights_only=True)["state_dict"]
    assert {"surrogate.w", "replay._extra_state", "_extra_state"} <= set(saved)
    assert len(dict(saved["replay._extra_state"])["prompt"])
    parts = run(tmp_path / "parts", 7, str(tmp_path / "parts/last.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))
    assert torch.equal(whole.moments, parts.moments) and whole.moments.shape == (2, 2)
    a, b = whole.replay.pairs, parts.replay.pairs
    assert a["prompt"] == b["prompt"] and all(torch.equal(a[k], b[k]) for k in ("step", "win", "lose"))


def test_a_black_box_reward_rises(tmp_path):
    torch.manual_seed(0)
    policy = StableDiffusion("tiny", LoRA(rank=4))
    method = make(policy, Linear(0.0), attach=False, anchor_weight=0.1, surrogate_lr=0.3, updates=2, pretrain=3)
    method.optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-2)

    @torch.no_grad()
    def evaluate():
        return Darkness()(policy.decode(method.rollout(policy, ["p0", "p1"] * 12, seeds=list(range(100, 124))).x), None)

    before = evaluate()
    trainer(tmp_path).fit(method, prompts(2, 12))
    gain = evaluate() - before
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_weights_are_one_for_each_step():
    for wrong in ((1.0, 1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="one number for each of the rollout's 2 steps"):
            make(weights=wrong)


def test_a_weight_of_0_leaves_a_step_out():
    method = make(weights=(0.0, 1.0), anchor_weight=0.0)
    method.collect({"prompt": ["a", "b"]})
    assert method.replay.pairs["step"].tolist() == [1, 1]
    method.improvement(["a", "b"], method.policy.condition(["a", "b"]))
    end = method.policy.process.timesteps(2)[2].item()
    assert method.moments.shape == (1, 2) and method.surrogate.times[-1].tolist() == [end] * 2


def test_a_reward_that_is_not_finite_names_its_prompt():
    method = make()
    method.reward.forward = lambda images, texts: T([float("nan") if t == "b" else 1.0 for t in texts])
    with pytest.raises(FloatingPointError, match="for 'b'"):
        method.collect({"prompt": ["a", "b"]})
