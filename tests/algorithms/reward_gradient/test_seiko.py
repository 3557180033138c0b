"""SEIKO: the loss, the queries, and a loop."""

import lightning as L
import pytest
import torch
from parts import BlackBox, Darkness, prompts, trainer

from lit_align.algorithms.reward_gradient.seiko import SEIKO
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def make(policy=None, **kwargs):
    policy = policy or StableDiffusion("tiny", LoRA(rank=2))
    noise = FlowSDE() if isinstance(policy, StableDiffusion3) else DDIM(1.0)
    defaults = {
        "rollout": Sampler(2, 2.0, noise),
        "updates": 1,
        "minibatch": 1,
        "accumulate": 2,
        "epochs": 5,
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
    }
    method = SEIKO(policy=policy, reward=BlackBox(), **(defaults | kwargs))
    method.grad_steps = all_steps
    return method


def test_the_loss_is_alignprops_on_the_optimistic_surrogate_and_the_kl_to_the_last_loops_model():
    method = make(kl_weight=0.5, minibatch=3)
    method.log_mean = lambda *args: None
    method.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    method.policy.add_reference(moving=True)
    for p in method.policy.parameters():
        p.data += 0.05 * torch.randn_like(p) if p.requires_grad else 0
    torch.manual_seed(2)
    got = method.batch_loss({"prompt": ["a", "b"]}).item()
    torch.manual_seed(2)
    drawn = [["a", "b"][i] for i in torch.randint(2, (3,)).tolist()]
    state = method.rollout(method.policy, drawn, record=True)
    tr, kl = state.trajectory, 0
    times = method.rollout.timesteps(method.policy)
    for i in range(2):
        with torch.no_grad(), method.policy.reference():
            ref = method.rollout.gaussian(
                method.policy, tr.x_t[:, i], *(t.expand(3) for t in times[i : i + 2]), tr.cond
            )[0]
        kl = kl + ((tr.mean[:, i] - ref.mean) ** 2 / (2 * ref.std**2)).flatten(1).mean(1)
    r = method.reward(method.policy.decode(state.x), drawn)
    want = (0.01 * (10 - r).abs() + 0.5 * kl).mean().item()
    assert kl.min() > 0 and got == pytest.approx(want / 2, rel=1e-5)  # a minibatch's share: two make a step


def test_queries_are_counted_and_are_all_that_the_reward_is_asked(tmp_path):
    method, fits = make(samples_per_prompt=(1, 3), updates=2), []
    fit = method.reward.fit
    method.reward.fit = lambda x, y: fits.append(len(y)) or fit(x, y)
    t = trainer(tmp_path)
    t.fit(method, prompts(2, 3))
    assert fits == [2, 6, 6] and t.global_step == 3 * 2
    asked = method.reward.queried.asked
    assert len(asked) == len(method.reward.y) == 14 and asked[:4] == ["p0", "p1", "p0", "p1"]
    assert t.callback_metrics["train/queries"].item() == 14
    assert t.callback_metrics["train/reward"].item() == pytest.approx(method.reward.y[-6:].mean().item(), abs=1e-5)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_a_loop_moves_the_policy_then_its_reference_and_nothing_else(tmp_path, adapter):
    method = make(StableDiffusion("tiny", adapter))
    policy, kls, refresh = method.policy, [], method.policy.update_reference
    start = {n: p.detach().clone() for n, p in method.named_parameters()}

    def before_refresh():
        if len(kls) == 2:  # of the first loop; its first has theta = p_k
            with torch.no_grad(), policy.reference():
                assert torch.equal(policy.denoise(x, t, cond), was)
        refresh()

    policy.update_reference = before_refresh
    log = method.log_mean
    method.log_mean = lambda name, value, n: (
        kls.append(value.item()) if name == "train/kl_path_mean" else None,
        log(name, value, n),
    )[1]
    x, cond, t = torch.randn(1, *policy.latent_shape), policy.condition(["a"]), policy.process.timesteps(2)[:1]
    with torch.no_grad():
        was = policy.denoise(x, t, cond)
    trainer(tmp_path, max_steps=1).fit(method, prompts())
    assert kls == [0.0, 0.0]
    now = {n: p for n, p in method.named_parameters() if n in start}
    moved = {n for n in start if not torch.equal(start[n], now[n])}
    mine = {n for n in moved if not n.startswith("reward.heads")}
    assert mine and all(now[n].requires_grad for n in mine) and all(n.startswith("policy.") for n in mine)
    with torch.no_grad():
        after = policy.denoise(x, t, cond)
        with policy.reference():
            assert torch.equal(policy.denoise(x, t, cond), after)  # p_{k+1}
    assert not torch.equal(after, was)


def test_stopping_and_going_on_changes_no_bit(tmp_path):
    def run(epochs, ckpt_path=None):
        L.seed_everything(3, verbose=False)
        method = make(samples_per_prompt=(1, 2))
        t = trainer(tmp_path, max_epochs=epochs)
        t.fit(method, prompts(2, 1), ckpt_path=ckpt_path, weights_only=False)
        return method, t

    whole, _ = run(2)
    first, t = run(1)
    t.save_checkpoint(tmp_path / "half.ckpt")
    assert len(first.reward.y) == 2
    parts, t = run(2, tmp_path / "half.ckpt")
    assert t.global_step == 2 and len(parts.reward.y) == 6
    a, b = whole.state_dict(), parts.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if not k.endswith("_extra_state"))
    a, b = (m.reward.get_extra_state() for m in (whole, parts))
    assert all(torch.equal(one, other) for one, other in zip(a[:3], b[:3], strict=True))
    assert a[3].keys() == b[3].keys() and all(torch.equal(a[3][k], b[3][k]) for k in a[3])


@pytest.mark.slow
def test_a_true_surrogate_lets_the_reward_rise(tmp_path):
    L.seed_everything(0, verbose=False)
    policy = StableDiffusion("tiny", LoRA(rank=4))
    more = {"rollout": Sampler(3, 1.0, DDIM(1.0)), "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
    method = make(policy, updates=8, minibatch=4, accumulate=1, epochs=1, kl_weight=1e-3, **more)
    method.reward.forward = Darkness().forward

    @torch.no_grad()
    def evaluate():
        return 1 - policy.decode(Sampler(3, 1.0)(policy, ["p0", "p1"] * 12, seeds=list(range(100, 124))).x).mean((1, 2, 3))

    before = evaluate()
    trainer(tmp_path).fit(method, prompts(4, 2))
    gain = evaluate() - before
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_every_rank_fits_to_all_ranks_queries():
    method = make(samples_per_prompt=(1,))
    method.trainer = trainer(None)
    method.log_mean = lambda *args: None
    method.all_gather = lambda x: torch.stack([x, x + 1.0])
    fitted = []
    method.reward.fit = lambda x, y: fitted.append((x, y))
    method.collect({"prompt": ["a", "b"]})
    ((x, y),) = fitted
    assert len(x) == len(y) == 4
    torch.testing.assert_close(x[2:], x[:2] + 1.0)
    torch.testing.assert_close(y[2:], y[:2] + 1.0)
