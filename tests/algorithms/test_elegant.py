"""ELEGANT: its path KL and its optimum against closed forms, of a chain that is linear and Gaussian; nu; one step."""

import math
from collections import Counter
from contextlib import contextmanager

import lightning as L
import pytest
import torch
from parts import Darkness, T, prompts, trainer
from torch import nn

from lit_align.algorithms.parts.initial_distribution import InitialDistribution
from lit_align.algorithms.parts.path_kl import PathKL
from lit_align.algorithms.reward_gradient.elegant import ELEGANT
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import VP
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

BATCH = {"prompt": ["a", "b"], "index": [0, 1]}


class Chain(nn.Module):
    """A policy of one dimension whose reverse chain is linear and Gaussian: that of data N(0.5, 0.6^2). Its control is
    a function (x, i) -> shift of the step's mean."""

    latent_shape, device = (1,), torch.device("cpu")

    def __init__(self, steps):
        super().__init__()
        betas = torch.linspace(0.001, 0.01, 100, dtype=torch.float64)  # not all noise at the end: x_0 depends on x_T
        self.process = VP((1 - betas).cumprod(0), "sample", "linspace", 0)
        self.denoiser, self.in_reference, self.control = nn.Linear(1, 1), False, None
        self.calls, self.grid = Counter(), self.process.timesteps(steps)
        a, s = self.process.alpha(self.grid).double(), self.process.sigma(self.grid).double()
        (a_t, a_s), (s_t, s_s) = (a[:-1], a[1:]), (s[:-1], s[1:])
        std2 = s_s**2 * (1 - (a_t * s_s / (a_s * s_t)) ** 2)  # eta = 1
        share = (s_s**2 - std2).sqrt() / s_t
        self.gain = a_s - share * a_t  # mean = share x_t + gain x_0-hat
        k = 0.36 * a_t / (0.36 * a_t**2 + s_t**2)  # x_0-hat = 0.5 + k (x_t - 0.5 a_t)
        self.k, self.a_t = k, a_t
        self.A, self.b, self.std2 = share + self.gain * k, self.gain * 0.5 * (1 - k * a_t), std2

    def condition(self, texts):
        return {"text": torch.zeros(len(texts), 1, 1)}

    @contextmanager
    def reference(self):
        self.in_reference = True
        yield
        self.in_reference = False

    def denoise(self, x, t, cond, guidance_scale=1.0):
        i = int((self.grid == t[0]).nonzero()[0])
        x_0 = 0.5 + self.k[i] * (x.double() - 0.5 * self.a_t[i])
        if not self.in_reference and self.control:
            x_0 = x_0 + self.control(x.double(), i) / self.gain[i]
        return x_0.float()

    def downstream(self):
        """d_i: x_0 = ... + d_i x_s of step i; then mean slope a and offset of x_0 in x_T, and its variance."""
        d = torch.cat([self.A.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.float64)])
        return d, self.A.prod(), (d * self.b).sum(), (d**2 * self.std2).sum()


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
    torch.testing.assert_close(m.path.kl, torch.full((n,), kl.item()), rtol=1e-4, atol=1e-6)
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


# The path KL


@pytest.mark.parametrize("adapter", [lambda: LoRA(rank=2), Full], ids=["lora", "full"])
@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_the_path_kls_gradient_is_that_of_the_plain_graph(family, moving, adapter):
    """Through theta, and through x_t into both networks."""
    policy = family("tiny", adapter())
    rollout = Sampler(3, 2.0, FlowSDE() if family is StableDiffusion3 else DDIM(1.0))
    policy.add_reference(moving)
    trained, generator = [p for p in policy.parameters() if p.requires_grad], torch.Generator().manual_seed(7)
    for p in trained:
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    cond, grid = policy.condition(["a", "b"]), rollout.timesteps(policy)
    torch.manual_seed(3)
    path = PathKL(rollout, "mean")
    state = rollout(policy, cond=cond, hooks=(path,), grad=all_steps(3))
    (path.kl.sum() + state.x.mean()).backward()
    got = torch.cat([p.grad.flatten() for p in trained])
    assert all(p.grad is None for p in policy.parameters() if not any(p is q for q in trained))
    assert all(p.requires_grad for p in trained) and sum(p.requires_grad for p in policy.parameters()) == len(trained)

    torch.manual_seed(3)
    x, kl = torch.randn(2, *policy.latent_shape), 0
    for t, s in zip(grid, grid[1:]):
        at = (x, t.expand(2), s.expand(2), cond)
        now = rollout.gaussian(policy, *at)[0]
        with policy.reference():
            before = rollout.gaussian(policy, *at)[0]
        kl = kl + ((now.mean - before.mean) ** 2 / (2 * now.std**2)).flatten(1).mean(1)
        x = now.mean + now.std * torch.randn_like(x)
    torch.testing.assert_close(path.kl, kl, rtol=1e-4, atol=1e-7)
    want = torch.autograd.grad(kl.sum() + x.mean(), trained)
    want = torch.cat([g.flatten() for g in want])
    assert want.norm() > 0 and (got - want).norm() < 2e-3 * want.norm()


def test_steps_without_gradient_count_as_constants_and_a_rollout_without_noise_is_refused():
    policy = StableDiffusion("tiny", LoRA(rank=2))
    for p in policy.parameters():
        p.data += 0.05 * torch.randn_like(p) if p.requires_grad else 0
    rollout = Sampler(3, 1.0, DDIM(1.0))
    path = PathKL(rollout)
    rollout(policy, ["a"], hooks=(path,), grad=torch.zeros(3, dtype=torch.bool))
    assert path.kl.item() > 0 and not path.kl.requires_grad
    with pytest.raises(ValueError, match="has no noise"):
        Sampler(2, 1.0)(policy, ["a"], hooks=(PathKL(Sampler(2, 1.0)),))


# nu and v_0


def constant(policy, q):
    """A law whose drift is q everywhere."""
    law = InitialDistribution(policy, steps=4)
    law.q[-1].bias.data[:] = q
    return law


def test_nu_starts_at_the_noise_itself_and_a_constant_drift_has_its_closed_form():
    policy = StableDiffusion("tiny", LoRA(rank=2))
    x, text = torch.randn(4, *policy.latent_shape), policy.condition(["a"] * 4)["text"]
    y, kl = InitialDistribution(policy)(x, text)
    torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)
    assert not kl.any()
    y, kl = constant(policy, 0.3)(x, text)
    torch.testing.assert_close(y, x + 0.3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kl, torch.full((4,), x[0].numel() * 0.3**2 / 2))  # of N(0.3, I) to N(0, I)


def test_nus_increments_are_those_of_a_brownian_motion():
    """A drift that shows where it is: y_k has variance k / n and covariances min(k, l) / n."""
    policy, n = Chain(2), 100_000
    law, seen = InitialDistribution(policy, steps=4), []
    law.q.forward = lambda h: seen.append(h[:, 0]) or torch.zeros(len(h), 1)
    torch.manual_seed(0)
    y, _ = law(torch.randn(n, 1), torch.zeros(n, 1, 1))
    got = torch.cov(torch.stack([*seen[1:], y.flatten()]))
    k = torch.arange(1, 5)
    torch.testing.assert_close(got, torch.minimum(k[:, None], k) / 4, atol=0.012, rtol=0)


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
        m.initial_loss([""] * 64).backward()
        optimizer.step()
    with torch.no_grad():
        x_T, kl = m.initial["nu"](m.noise(20_000), torch.zeros(20_000, 1, 1))
    assert (0.5 * kl - 0.8 * x_T.flatten()).mean().item() == pytest.approx(-(0.8**2) / (2 * 0.5), abs=0.03)
    assert x_T.mean().item() == pytest.approx(1.6, abs=0.1) and x_T.var().item() == pytest.approx(1, abs=0.06)


def test_v_0s_target_is_the_soft_mean_over_pre_trained_rollouts_from_one_noise():
    policy = StableDiffusion("tiny", LoRA(rank=2))
    m = method(policy, None, Sampler(2, 1.0, DDIM(1.0)), alpha=0.2, rollouts=3)
    for p in policy.parameters():
        p.data += 5.0 if p.requires_grad else 0  # far from pre-trained
    r, starts, predict = T([[0.1, 0.5], [0.4, 0.2], [0.3, 0.9]]), [], policy.predict
    policy.predict = lambda x, t, cond: starts.append((x.clone(), policy.in_reference)) or predict(x, t, cond)
    m.reward.forward = lambda images, texts: r.flatten()  # in one call
    x, cond = m.noise(2), policy.condition(BATCH["prompt"])
    got = m.soft_value(x, cond, BATCH["prompt"])
    want = [0.2 * math.log(sum(math.exp(v / 0.2) for v in column) / 3) for column in ((0.1, 0.4, 0.3), (0.5, 0.2, 0.9))]
    torch.testing.assert_close(got, T(want))
    assert len(starts) == 6 and all(inside for _, inside in starts)
    assert all(torch.equal(starts[k][0], x) for k in (0, 2, 4)) and not torch.equal(starts[1][0], starts[3][0])


def test_each_network_has_its_own_terms_gradient():
    m = method(StableDiffusion("tiny", LoRA(rank=2)), None, Sampler(2, 1.0, DDIM(1.0)))
    m.soft_value = lambda x, cond, texts: torch.ones(len(x))
    torch.manual_seed(0)
    value = list(m.initial["value"].parameters())
    total = torch.autograd.grad(m.initial_loss(["a"]), value)
    torch.manual_seed(0)
    x = m.noise(1)
    text = m.policy.condition(["a"])["text"]
    alone = torch.autograd.grad((m.v_0(x, text) - 1).square().mean(), value)
    assert all(torch.equal(a, b) for a, b in zip(total, alone)) and any(g.any() for g in alone)
    assert all(p.requires_grad for p in value)


# The method


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

    want = m.sampler(m.policy, BATCH["prompt"], seeds=BATCH["index"], hooks=(Half(),)).x
    torch.testing.assert_close(m.draw(BATCH).x, want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(want, base)


def test_the_trainers_clipping_does_not_let_the_value_shrink_the_policy(tmp_path):
    rollout, norms = Sampler(2, 2.0, DDIM(1.0)), []
    m = ELEGANT(policy=StableDiffusion("tiny"), reward=Darkness(), rollout=rollout, rollouts=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    m.reward.forward = lambda images, texts: 100 + 100 * (1 - images.mean((1, 2, 3)))
    norm = lambda group: torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm().item()
    clip = m.clip_by_group

    def watched(optimizer, value):
        norms.append([norm(group) for group in optimizer.param_groups])
        clip(optimizer, value)
        norms.append([norm(group) for group in optimizer.param_groups])

    m.clip_by_group = watched
    trainer(tmp_path, gradient_clip_val=0.1).fit(m, prompts())
    before, after = norms
    assert min(before) > 0.1 and after == pytest.approx([0.1, 0.1], rel=1e-3)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
def test_a_step_moves_policy_value_and_nu(tmp_path, family, adapter):
    policy = family("tiny", adapter)
    rollout = Sampler(2, 2.0, FlowSDE() if family is StableDiffusion3 else DDIM(1.0))
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
    assert t.callback_metrics["train/kl"] == 0 and "train/reward" in t.callback_metrics  # theta was p_pre


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
        return 1 - policy.decode(m.draw({"prompt": ["p0", "p1"] * 12, "index": list(range(100, 124))}).x).mean(
            (1, 2, 3)
        )

    before = evaluate()
    trainer(tmp_path).fit(m, prompts(2, 15))
    gain = evaluate() - before
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5
