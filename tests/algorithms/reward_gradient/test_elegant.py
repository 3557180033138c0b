"""ELEGANT: its optimum against closed forms, of a chain that is linear and Gaussian; v_0 and nu; one step."""

import math

import lightning as L
import pytest
import torch
from chain import Chain
from parts import Darkness, T, prompts, trainer

from lit_align.algorithms.reward_gradient.elegant import ELEGANT
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion

BATCH = {"prompt": ["a", "b"], "index": [0, 1], "seed": [0, 1]}

def quadratic(A, b, std2, alpha, g, h):
    """Backwards: alpha log E[exp(V / alpha)] of V(x) = -h x^2 / 2 + g x + c. Yields (h, g, c) before each step."""
    c, out = 0.0, []
    for a, m, v in reversed(list(zip(A.tolist(), b.tolist(), std2.tolist()))):
        out.append((h, g, c))
        w = 1 + h * v / alpha  # int N(y; mu, v) exp(V(y) / alpha), mu = a x + m
        c = c - alpha / 2 * math.log(w) + v * g * g / (2 * alpha * w)
        h, g = h / w, g / w
        c, g, h = c - h * m * m / 2 + g * m, a * (g - h * m), h * a * a
    return (h, g, c), out[::-1]


def method(policy, reward, rollout, **kwargs):
    m = ELEGANT(policy=policy, reward=Darkness(), rollout=rollout, **kwargs)
    m.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    m.trainer.training, m.log_mean = True, lambda *args: None
    if reward:
        m.reward.forward, policy.decode = reward, lambda x: x
    return m


def test_a_linear_rewards_optimum_has_the_closed_forms_value_on_every_path():
    """r = g x_0: the optimal control is a constant at each step; KL = g^2 Var(x_0 | x_T) / 2 alpha^2."""
    policy, alpha, g, n = Chain(8), 0.4, 0.7, 20_000
    d, slope, offset, var = policy.downstream()
    policy.control = lambda x, i: policy.std2[i] * d[i] * g / alpha
    m = method(policy, lambda x, texts: g * x.flatten(), Sampler(8, 1.0, DDIM(1.0)), alpha=alpha, learn_initial=False)
    torch.manual_seed(0)
    loss = m.batch_loss({"prompt": [""] * n})
    kl = g**2 * var / (2 * alpha**2)
    torch.testing.assert_close(m.path_kl, torch.full((n,), kl.item()), rtol=1e-4, atol=1e-6)
    want = -(g * offset + g**2 * var / (2 * alpha))  # -E_{x_T} alpha log E exp(r / alpha)
    assert loss.item() == pytest.approx(want.item(), abs=4 * g * 0.6 / n**0.5)
    policy.control = lambda x, i: 0.5 * policy.std2[i] * d[i] * g / alpha  # half of it is worse by alpha KL / 4
    torch.manual_seed(0)
    assert m.batch_loss({"prompt": [""] * n}).item() - loss.item() == pytest.approx(alpha * kl.item() / 4, rel=1e-2)


@pytest.mark.parametrize("learn_initial", [False, True])
def test_a_quadratic_rewards_optimum_is_the_tilted_law(learn_initial):
    """r = g x_0 - h x_0^2 / 2, in many small steps, where a shift of the mean alone is optimal: the loss is -alpha log E
    exp(r / alpha), over all x_T with nu and given x_T without, and x_0 follows exp(r / alpha) p_pre if x_T follows nu."""
    steps, alpha, g, h, n = 100, 0.5, 0.6, 1.2, 20_000
    policy = Chain(steps)
    _, slope, offset, var = policy.downstream()
    (h0, g0, c0), after = quadratic(policy.A, policy.b, policy.std2, alpha, g, h)

    def control(x, i):  # the mean of p_pre(y | x) exp(V(y) / alpha), less p_pre's
        hi, gi, _ = after[i]
        mu, v = policy.A[i] * x + policy.b[i], policy.std2[i]
        return v * (gi - hi * mu) / (alpha + hi * v)

    policy.control = control
    m = method(
        policy,
        lambda x, texts: (g * x - h * x.square() / 2).flatten(),
        Sampler(steps, 1.0, DDIM(1.0)),
        alpha=alpha,
        learn_initial=False,
    )
    w = 1 + h0 / alpha
    nu_mean, nu_var = (g0 / alpha / w, 1 / w) if learn_initial else (0.0, 1.0)  # exp(v_0 / alpha) N(0, 1)
    m.noise = lambda n: nu_mean + nu_var**0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    kl_nu = (nu_var + nu_mean**2 - 1 - math.log(nu_var)) / 2
    seen, decode = [], policy.decode
    policy.decode = lambda x: seen.append(x.detach().double().flatten()) or decode(x)
    torch.manual_seed(1)
    with torch.no_grad():
        loss = m.batch_loss({"prompt": [""] * n}).item() + alpha * kl_nu
    mean, s2 = offset.item(), (slope**2 + var).item()  # of p_pre
    wt = 1 + h * s2 / alpha  # E exp(r / alpha) in one go
    total = g * mean - h * mean**2 / 2 - alpha / 2 * math.log(wt) + s2 * (g - h * mean) ** 2 / (2 * alpha * wt)
    if learn_initial:
        assert total == pytest.approx(
            c0 - alpha / 2 * math.log(w) + g0**2 / (2 * alpha * w), rel=1e-6
        )  # the two recursions agree
        assert loss == pytest.approx(-total, abs=0.01)
        assert seen[0].mean().item() == pytest.approx((mean + s2 * g / alpha) / wt, abs=0.015)
        assert seen[0].var().item() == pytest.approx(s2 / wt, rel=0.04)
    else:
        assert loss == pytest.approx(-(c0 - h0 / 2), abs=0.01)  # -E v_0(x_T)
        assert loss > -total + 0.01  # N(0, 1) is not where to start


def test_nu_learns_the_tilted_law_from_v_0_alone():
    """v_0 = w . x_T: nu is N(w / alpha, I), and its loss -|w|^2 / 2 alpha."""
    policy = Chain(2)
    m = method(policy, None, Sampler(2, 1.0, DDIM(1.0)), alpha=0.5)
    m.soft_value = lambda x, cond, texts: torch.zeros(len(x))
    m.v_0 = lambda x, text: 0.8 * x.flatten() + 0 * sum(p.sum() for p in m.initial["value"].parameters())
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(m.initial["nu"].parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        m.initial_loss({"prompt": [""] * 64}).backward()
        optimizer.step()
    with torch.no_grad():
        x_T, kl = m.initial["nu"](m.noise(20_000), torch.zeros(20_000, 1))
    assert (0.5 * kl - 0.8 * x_T.flatten()).mean().item() == pytest.approx(-(0.8**2) / (2 * 0.5), abs=0.03)
    assert x_T.mean().item() == pytest.approx(1.6, abs=0.1) and x_T.var().item() == pytest.approx(1, abs=0.06)


def test_v_0s_target_is_the_soft_mean_over_pre_trained_rollouts_from_one_noise():
    policy = StableDiffusion("tiny", LoRA(rank=2))
    m = method(policy, None, Sampler(2, 1.0, DDIM(1.0)), alpha=0.2, rollouts=3)
    for p in policy.parameters():
        p.data += 5.0 if p.requires_grad else 0  # far from pre-trained
    r, starts, predict = T([[0.1, 0.5], [0.4, 0.2], [0.3, 0.9]]), [], policy.predict
    policy.predict = lambda x, t, cond: starts.append((x.clone(), policy.in_reference)) or predict(x, t, cond)
    given = iter(r)
    m.reward.forward = lambda images, texts: next(given)  # a rollout at a time
    x, cond = m.noise(2), policy.condition(BATCH["prompt"])
    got = m.soft_value(x, cond, BATCH)
    want = [0.2 * math.log(sum(math.exp(v / 0.2) for v in column) / 3) for column in ((0.1, 0.4, 0.3), (0.5, 0.2, 0.9))]
    torch.testing.assert_close(got, T(want))
    assert len(starts) == 6 and all(inside for _, inside in starts)
    assert all(torch.equal(starts[k][0], x) for k in (0, 2, 4)) and not torch.equal(starts[1][0], starts[3][0])


def test_each_network_has_its_own_terms_gradient():
    m = method(StableDiffusion("tiny", LoRA(rank=2)), None, Sampler(2, 1.0, DDIM(1.0)))
    m.soft_value = lambda x, cond, texts: torch.ones(len(x))
    torch.manual_seed(0)
    value = list(m.initial["value"].parameters())
    total = torch.autograd.grad(m.initial_loss({"prompt": ["a"]}), value)
    torch.manual_seed(0)
    x = m.noise(1)
    text = m.policy.summary(m.policy.condition(["a"]))
    alone = torch.autograd.grad((m.v_0(x, text) - 1).square().mean(), value)
    assert all(torch.equal(a, b) for a, b in zip(total, alone)) and any(g.any() for g in alone)
    assert all(p.requires_grad for p in value)


def test_the_policy_is_sampled_from_nu_and_the_base_from_its_own_noise():
    """A seed's steps draw the same noise in both."""
    m = method(StableDiffusion("tiny", LoRA(rank=2)), None, Sampler(2, 1.0, DDIM(1.0)), sampler=Sampler(2, 1.0, DDIM(1.0)))
    m.policy.add_reference()
    with torch.no_grad(), m.policy.reference():
        base = m.draw(BATCH).x
    torch.testing.assert_close(m.draw(BATCH).x, base, rtol=1e-4, atol=1e-4)  # no drift, no adapter yet
    m.initial["nu"].q[-1].bias.data[:] = 0.5

    class Half(Hook):
        def on_init(self, policy, state):
            state.x = state.x + 0.5
            super().on_init(policy, state)

    want = m.sampler(m.policy, BATCH["prompt"], seeds=BATCH["seed"], hooks=(Half(),)).x
    torch.testing.assert_close(m.draw(BATCH).x, want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(want, base)


class Norms(L.Callback):
    """The norm of each parameter group's gradient, before it is clipped."""

    def on_before_optimizer_step(self, trainer, method, optimizer):
        self.found = norms(optimizer)


def norms(optimizer):
    grads = [[p.grad.norm() for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    return [torch.stack(group).norm().item() for group in grads]


class Loud(Darkness):
    def forward(self, images, prompts):
        return 100 + 100 * super().forward(images, prompts)


def test_the_trainers_clipping_does_not_let_the_value_shrink_the_policy(tmp_path):
    rollout, before = Sampler(2, 2.0, DDIM(1.0)), Norms()
    m = ELEGANT(policy=StableDiffusion("tiny"), reward=Loud(), rollout=rollout, rollouts=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    t = trainer(tmp_path, gradient_clip_val=0.1, callbacks=[before])
    t.fit(m, prompts())
    assert min(before.found) > 0.1 and norms(t.optimizers[0]) == pytest.approx([0.1, 0.1], rel=1e-3)


def test_a_step_moves_policy_value_and_nu(tmp_path):
    policy, rollout = StableDiffusion("tiny", LoRA(rank=2)), Sampler(2, 2.0, DDIM(1.0))
    m = ELEGANT(
        policy=policy, reward=Darkness(), rollout=rollout, rollouts=2, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)
    )
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    t = trainer(tmp_path, max_steps=1)
    t.fit(m, prompts())
    now = {n: p for n, p in m.named_parameters() if n in before}
    moved = {n for n in before if not torch.equal(before[n], now[n])}
    assert moved and all(now[n].requires_grad for n in moved)
    for part in ("policy.", "initial.value.", "initial.nu."):
        assert any(n.startswith(part) for n in moved)
    assert t.callback_metrics["train/kl_path"] == 0 and "train/reward" in t.callback_metrics  # theta was p_pre


def test_stopping_and_going_on_changes_no_bit(tmp_path):
    def run(epochs, ckpt_path=None):
        L.seed_everything(3, verbose=False)
        m = ELEGANT(policy=StableDiffusion("tiny"), reward=Darkness(), rollout=Sampler(2, 1.0, DDIM(1.0)), rollouts=2)
        t = trainer(tmp_path, max_epochs=epochs)
        t.fit(m, prompts(2, 2), ckpt_path=ckpt_path, weights_only=False)
        return m.state_dict(), t

    whole, _ = run(2)
    _, t = run(1)
    t.save_checkpoint(tmp_path / "half.ckpt")
    parts, t = run(2, tmp_path / "half.ckpt")
    assert t.global_step == 4 and whole.keys() == parts.keys() and any(".nu." in k for k in whole)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


@pytest.mark.slow
def test_the_reward_rises(tmp_path):
    L.seed_everything(0, verbose=False)
    policy = StableDiffusion("tiny", LoRA(rank=4))
    m = ELEGANT(
        policy=policy,
        reward=Darkness(),
        rollout=Sampler(3, 1.0, DDIM(1.0)),
        rollouts=2,
        alpha=1e-4,
        sampler=Sampler(3, 1.0),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )

    @torch.no_grad()
    def evaluate():
        return 1 - policy.decode(m.draw({"prompt": ["p0", "p1"] * 12, "seed": list(range(100, 124))}).x).mean(
            (1, 2, 3)
        )

    before = evaluate()
    trainer(tmp_path).fit(m, prompts(2, 15))
    gain = evaluate() - before
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5
