"""TDPO-R: its critic, the reset of its neurons, and the order of its updates."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from parts import Darkness, T, prompts, rollout, trainer

from lit_align.algorithms.parts.image_critic import Critic
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.clip_score import CLIPScore


def make(policy=None, **kwargs):
    policy = policy or StableDiffusion("tiny", LoRA(rank=2))
    defaults = {
        "rollout": rollout(policy, 3),
        "samples_per_prompt": 2,
        "minibatch": 4,
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
    }
    return TDPOR(policy=policy, reward=Darkness(), **(defaults | kwargs))


def alone(**kwargs):
    method = make(**kwargs)
    method.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    method.log_mean = lambda *args: None
    return method


# The critic


def stepped(size=12):
    """A critic whose every parameter has moments, its optimizer, and embeddings on which neurons 0 and 3 of the second
    hidden layer are dormant."""
    torch.manual_seed(0)
    critic, e = Critic(size), torch.randn(32, size)
    for p in critic.parameters():
        p.data = 0.3 * torch.randn_like(p)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
    F.mse_loss(critic(e), torch.randn(32)).backward()
    optimizer.step()
    critic.eval()
    critic.layers[1].bias.data[[0, 3]] = -1e4
    return critic, optimizer, e


def test_scores_are_mean_relus_over_the_layers():
    critic, _, e = stepped()
    x, got = e, critic.scores(e)
    for layer, score in zip(critic.layers[:-1], got, strict=True):
        x = x @ layer.weight.T + layer.bias
        mean = torch.where(x > 0, x, 0.0).sum(0) / 32
        torch.testing.assert_close(score, mean / mean.mean(), rtol=1e-4, atol=1e-5)
    assert not got[1][[0, 3]].any() and got[1][1:3].all()
    torch.testing.assert_close(
        critic(e), (x @ critic.layers[-1].weight.T).squeeze(1) + critic.layers[-1].bias, rtol=1e-4, atol=1e-4
    )


def test_a_reset_touches_active_neurons_and_their_moments_and_nothing_else():
    critic, optimizer, e = stepped()
    before = [p.detach().clone() for p in critic.parameters()]
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in critic.parameters()]
    masks = [score > 0 for score in critic.scores(e)]
    assert any(m.any() and not m.all() for m in masks)
    critic.reset(masks, optimizer.state, torch.Generator().manual_seed(1))
    fresh, ends = [], [torch.zeros(12, dtype=torch.bool), *masks, torch.zeros(1, dtype=torch.bool)]
    for i, layer in enumerate(critic.layers):
        into, out = ends[i + 1], ends[i]
        for j, (p, touched) in enumerate(((layer.weight, into[:, None] | out), (layer.bias, into))):
            old, was = before[2 * i + j], moments[2 * i + j]
            assert torch.equal(p != old, touched)
            for name in ("exp_avg", "exp_avg_sq"):
                now = optimizer.state[p][name]
                assert not now[touched].any() and torch.equal(now[~touched], was[name][~touched]) and was[name].any()
            assert optimizer.state[p]["step"] == was["step"]
        assert not layer.bias[into].any()
        fresh.append(layer.weight[into[:, None] | out])
    fresh = torch.cat(fresh) * 13  # drawn with standard deviation 1 / 13
    assert abs(fresh.mean()) < 0.02 and fresh.std().item() == pytest.approx(1, rel=0.02)


def test_the_critic_starts_small_and_its_dropout_is_in_training_alone():
    critic, e = Critic(24), torch.randn(4, 24)
    for layer in critic.layers[:2]:
        assert layer.weight.std().item() == pytest.approx(1 / 25, rel=0.03) and not layer.bias.any()
    for p in critic.parameters():
        p.data = 0.1 * torch.randn_like(p)
    assert not torch.equal(critic(e), critic(e))
    critic.eval()
    assert torch.equal(critic(e), critic(e))


# The method


def test_embeddings():
    image = torch.rand(2, 3, 32, 32)
    want = image.view(2, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(Darkness().embed(image), want)
    clip = CLIPScore("tiny")
    e, text = (
        clip.embed(image),
        clip.model.get_text_features(
            **clip.tokenizer(["a b"], return_tensors="pt", padding="max_length", max_length=77)
        ).pooler_output,
    )
    torch.testing.assert_close(e.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(
        clip(image, ["a b"] * 2), clip.model.logit_scale.exp() * (e @ text[0]) / text.norm(), rtol=1e-4, atol=1e-4
    )


def test_temporal_advantages_are_normalised_residuals_of_all_steps():
    method = alone()
    for p in method.critic.parameters():
        p.data = 0.1 * torch.randn_like(p)
    e, returns = torch.randn(5, 3, 768), torch.randn(5)
    value, advantage = method.temporal(e, returns)
    x = e.double().flatten(0, 1)
    for layer in method.critic.layers:
        x = x @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(value.double(), x.view(5, 3), rtol=1e-3, atol=1e-4)
    r = returns.double()[:, None] - x.view(5, 3)
    want = (r - r.sum() / 15) / (r - r.sum() / 15).square().mean().sqrt()
    torch.testing.assert_close(advantage.double(), want, rtol=1e-3, atol=1e-3)
    assert method.critic.training


def test_residuals_are_normalised_over_all_ranks():
    method = alone()
    method.critic.forward = lambda e: e[..., 0]
    method.all_gather = lambda x: torch.stack([x, x + 4.0])  # the other rank's samples are better
    _, advantage = method.temporal(torch.zeros(2, 2, 768), T([1.0, 3.0]))
    torch.testing.assert_close(advantage, T([[-2.0, -2.0], [0.0, 0.0]]) * 5**-0.5 - 5**-0.5)  # of 1, 3, 5, 7


def test_the_policy_learns_from_what_the_critic_did_not_foresee(tmp_path):
    method, seen = make(samples_per_prompt=1), []
    method.reward.forward = lambda images, texts: T([0.0, 1.0])
    method.advantage.forward = lambda prompt_id, reward: reward
    method.critic.forward = lambda e: torch.linspace(0, 1, e[..., 0].numel()).view(e.shape[:-1])
    evaluate = method.evaluate
    method.evaluate = lambda tr, a, rows, k: seen.append(a) or evaluate(tr, a, rows, k)
    trainer(tmp_path).fit(method, prompts(2))
    residual = T([0.0, 1.0])[:, None] - torch.linspace(0, 1, 6).view(2, 3)
    torch.testing.assert_close(seen[0], (residual - residual.mean()) / residual.std(correction=0))


@pytest.mark.parametrize(
    "value,old,want", [(0.5, 0.5, 0.125), (0.9, 0.5, 0.5 * 0.3**2), (0.1, 0.5, 0.5 * 0.9**2), (1.6, 0.5, 0.5 * 0.6**2)]
)
def test_the_value_loss_is_clipped_around_the_old_value(value, old, want):
    """For a return of 1 and a band of 0.2: what overtakes the band towards the return gains nothing more."""
    assert alone().value_loss(T([value]), T([old]), T([1.0])).item() == pytest.approx(want, rel=1e-5)


def test_an_optimizer_step_for_each_denoising_step_of_each_share(tmp_path):
    method = make(updates=2, samples_per_prompt=3, minibatch=2)
    seen, steps, evaluate, kept = [], [], method.evaluate, {}
    method.evaluate = lambda tr, a, rows, k: (
        seen.append((method.global_step, rows.tolist(), k.tolist())) or kept.update(tr=tr) or evaluate(tr, a, rows, k)
    )
    embedded = method.embedded
    method.embedded = lambda x: kept.update(x=x, e=embedded(x)) or kept["e"]
    t = trainer(tmp_path)
    t.fit(method, prompts(2))
    assert t.global_step == 3 * 2
    cells = [(r, k) for _, rows, ks in seen for r, k in zip(rows, ks)]
    assert sorted(cells) == [(r, k) for r in range(6) for k in range(3)]
    for number in range(6):
        steps.append([r for n, rows, _ in seen if n == number for r in rows])
        assert len(steps[-1]) == 3  # half of the trajectories, each once
    assert all(set(steps[2 * j] + steps[2 * j + 1]) == set(range(6)) for j in range(3))
    assert len({tuple(k for r, k in cells if r == row) for row in range(6)}) > 1  # each in an order of its own
    with torch.no_grad():
        want = F.adaptive_avg_pool2d(method.policy.decode(kept["tr"].x_t[4, 1:2]), 16).flatten()
    torch.testing.assert_close(kept["e"][4, 1], want, rtol=1e-4, atol=1e-5)


def test_policy_and_critic_are_clipped_each_by_itself(tmp_path):
    method, norms = make(max_grad_norm=1e-6), []
    clip = method.on_before_optimizer_step

    def spy(optimizer):
        clip(optimizer)
        norms.append(
            [
                torch.cat([p.grad.flatten() for p in g["params"] if p.grad is not None]).norm().item()
                for g in optimizer.param_groups
            ]
        )

    method.on_before_optimizer_step = spy
    method.critic.layers[-1].weight.data.fill_(0.1)
    trainer(tmp_path).fit(method, prompts())
    assert len(norms[0]) == 2 and max(n[1] for n in norms) > 0.5e-6  # the critic's is not crushed by the policy's
    assert all(n <= 1.01e-6 for pair in norms for n in pair)


def test_the_critic_learns_the_returns_from_where_it_starts():
    method, e = alone(), torch.rand(64, 768)
    returns = 0.7 + e[:, 0]
    optimizer = torch.optim.AdamW(method.parameter_groups()[1]["params"], lr=1e-3)
    losses = []
    for i in range(150):
        if i % 10 == 0:
            old = method.temporal(e[:, None], returns)[0].flatten()
        loss = method.value_loss(method.critic(e), old, returns).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(0.5 * returns.square().mean().item(), rel=1e-3)
    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
def test_it_starts_at_ratio_1_and_moves_policy_and_critic(tmp_path, family, adapter):
    method = make(family("tiny", adapter))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    steps, evaluate = [], method.evaluate
    method.evaluate = lambda *args: steps.append(evaluate(*args)) or steps[-1]
    trainer(tmp_path).fit(method, prompts())
    assert (steps[0].ratio - 1).abs().max() < 1e-5
    now = dict(method.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], now[n])}
    assert all(now[n].requires_grad for n in moved)
    assert any(n.startswith("policy.") for n in moved) and any(n.startswith("critic.") for n in moved)


def test_resets_come_on_schedule(tmp_path):
    for every, want in ((0, []), (2, [2, 4])):
        method, resets = make(reset_every=every, updates=1, samples_per_prompt=1), []
        reset = method.critic.reset
        method.critic.reset = lambda masks, state, g: (
            resets.append(method.trainer.fit_loop.epoch_loop.total_batch_idx + 1) or reset(masks, state, g)
        )
        trainer(tmp_path).fit(method, prompts(1, 4))
        assert resets == want


def test_stopping_and_going_on_changes_no_bit(tmp_path):
    """Over two resets, one on either side of the stop."""

    def run(epochs, ckpt_path=None):
        L.seed_everything(3, verbose=False)
        method = make(reset_every=2, rollout=rollout(None, 2))
        t = trainer(tmp_path, max_epochs=epochs)
        t.fit(method, prompts(2, 2), ckpt_path=ckpt_path, weights_only=False)
        return method, t

    whole, _ = run(2)
    _, t = run(1)
    t.save_checkpoint(tmp_path / "half.ckpt")
    parts, t = run(2, tmp_path / "half.ckpt")
    assert t.global_step == 4 * 2 * 2
    a, b = whole.state_dict(), parts.state_dict()
    tensors = [k for k in a if not k.endswith("_extra_state")]
    assert a.keys() == b.keys() and any(k.startswith("critic.") for k in tensors)
    assert all(torch.equal(a[k], b[k]) for k in tensors)
    states = [[v for s in m.optimizers().optimizer.state.values() for v in s.values()] for m in (whole, parts)]
    assert all(torch.equal(x, y) for x, y in zip(*states, strict=True))
