"""FlowGRPO and what is made of it, DPOK, PRDP, and the advantages of RLOO and Pref-GRPO."""

import math

import pytest
import torch
from parts import Darkness, T, prompts, rollout, trainer

from lit_align.algorithms.parts.advantages import Group, LeaveOneOut, PerPrompt, WinRate
from lit_align.algorithms.policy_gradient.branch_grpo import BranchGRPO, Tree
from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.pcl import PCL
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.algorithms.policy_gradient.prdp import PRDP
from lit_align.algorithms.policy_gradient.sdpo import SDPO, interpolated
from lit_align.algorithms.trajectory_preference.d3po import D3PO
from lit_align.diffusion.process import Flow
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE, Gaussian, Windowed
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

FLOW = lambda steps=6: Sampler(steps, 2.0, FlowSDE(0.7))


def make(cls, policy=None, **kwargs):
    policy = policy or StableDiffusion3("tiny", LoRA(rank=2))
    defaults = {"rollout": rollout(policy, 4), "samples_per_prompt": 4, "minibatch": 8, "optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}
    return cls(policy=policy, reward=Darkness(), **(defaults | kwargs))


def quiet(method):
    method.log_mean = lambda *args: None
    return method


def move(policy, scale=0.05):
    for p in policy.parameters():
        if p.requires_grad:
            p.data += scale * torch.randn_like(p)


# Advantages


def test_leave_one_out_is_the_distance_to_the_others_mean():
    prompt, reward = T([0, 1, 0, 1, 0, 2]), T([1.0, 5.0, 2.0, 7.0, 6.0, 9.0])
    want = T([1 - 4.0, 5 - 7.0, 2 - 3.5, 7 - 5.0, 6 - 1.5, 0.0])
    torch.testing.assert_close(LeaveOneOut()(prompt, reward), want)


def test_win_rates_forget_how_far_rewards_lie_apart():
    prompt = T([0, 0, 0, 1, 1, 1])
    reward = T([0.5, 0.5001, 9.0, 1.0, 1.0, 3.0])
    rates = T([0.0, 0.5, 1.0, 0.25, 0.25, 1.0])
    torch.testing.assert_close(WinRate()(prompt, reward), Group(global_std=False)(prompt, rates))


# Windows


def test_outside_its_window_the_step_is_the_odes():
    process, rule = Flow(3.0), Windowed(FlowSDE(0.7))
    x_t, x_0, eps = torch.randn(3, 2, 3, 4, 4).unbind(0)
    t, s = T([0.8, 0.3]), T([0.7, 0.2])
    everywhere = rule(process, x_t, x_0, eps, t, s)
    torch.testing.assert_close(everywhere.mean, FlowSDE(0.7)(process, x_t, x_0, eps, t, s).mean)
    rule.low, rule.high = 0.5, 0.9
    got, ode = rule(process, x_t, x_0, eps, t, s), DDIM(0.0)(process, x_t, x_0, eps, t, s)
    torch.testing.assert_close(got.mean[0], everywhere.mean[0])
    torch.testing.assert_close(got.mean[1], ode.mean[1])
    assert got.std[0] > 0 and got.std[1] == 0


@pytest.mark.parametrize("slide_every,want", [(1, [0, 1, 2, 0, 1]), (2, [0, 0, 1, 1, 2])])
def test_a_sliding_window_goes_from_noise_to_data_and_starts_again(tmp_path, slide_every, want):
    method = make(FlowGRPO, rollout=FLOW(), window=2, window_range=(0, 4), slide_every=slide_every, beta=0.0)
    seen, learn = [], method.optimizer_steps
    method.optimizer_steps = lambda c: seen.append((c[0].log_prob[0] != 0).nonzero().flatten().tolist()) or learn(c)
    trainer(tmp_path).fit(method, prompts(1, 5))
    assert seen == [[k, k + 1] for k in want]


def test_a_drawn_window_visits_every_place_and_alone_is_learnt_from(tmp_path):
    method = make(FlowGRPO, rollout=FLOW(4), window=1, beta=0.0, samples_per_prompt=2)
    learnt, evaluate = [], method.evaluate
    method.evaluate = lambda tr, a, rows, i, *rest: learnt.append(set(i.tolist())) or evaluate(tr, a, rows, i, *rest)
    trainer(tmp_path).fit(method, prompts(1, 20))
    assert all(len(steps) == 1 for steps in learnt) and set.union(*learnt) == {0, 1, 2}  # never the last step


def test_a_fraction_of_the_steps_and_one_noise_for_a_prompt(tmp_path):
    method = make(FlowGRPO, rollout=FLOW(6), fraction=0.6, shared_noise=True, beta=0.0, minibatch=100)
    found, update = [], method.update
    method.update = lambda tr, a, groups, steps: found.append((tr, steps)) or update(tr, a, groups, steps)
    trainer(tmp_path).fit(method, prompts(2))
    trajectory, steps = found[0]
    assert len(steps) == 3 and 5 not in steps  # 0.6 of five
    x = trajectory.x_t[:, 0]
    assert all(torch.equal(x[0], x[i]) for i in (1, 2, 3)) and not torch.equal(x[0], x[4])


# FlowGRPO


def step(delta, advantage, mean=0.0, old_mean=0.0, ref_mean=0.0, std=0.5, t=0.6, s=0.5):
    """One dimension; log rho = delta."""
    one = lambda x: torch.full((1, 1), x)
    gaussian = Gaussian(one(mean), one(std))
    log_prob = T([delta], requires_grad=True)
    rest = {"x_t": one(0.0), "x_s": one(0.0), "t": T([t]), "s": T([s]), "cond": {}}
    return StepBatch(gaussian, log_prob, torch.zeros(1), T([advantage]), **rest, reference=Gaussian(one(ref_mean), one(std)), old_mean=one(old_mean))


def test_the_kl_is_the_released_codes():
    """mean (mu - mu_ref)^2 / (2 sigma_t^2), with the step's std = sigma_t sqrt(t - s)."""
    method = quiet(make(FlowGRPO, beta=0.04))
    std, t, s = 0.352797, 0.707278, 0.602151
    sigma = std / math.sqrt(t - s)
    loss = method.loss(step(0.0, 2.0, mean=0.3, ref_mean=0.1, std=std, t=t, s=s))
    assert loss.item() == pytest.approx(-2.0 + 0.04 * 0.2**2 / (2 * sigma**2), rel=1e-5)


def test_off_a_flow_the_kl_is_the_gaussians_own():
    method = quiet(make(FlowGRPO, StableDiffusion("tiny"), beta=0.04))
    loss = method.loss(step(0.0, 2.0, mean=0.3, ref_mean=0.1, std=0.5, t=501.0, s=481.0))
    assert loss.item() == pytest.approx(-2.0 + 0.04 * 0.2**2 / (2 * 0.5**2), rel=1e-5)


@pytest.mark.parametrize("delta,advantage,want", [(0.2, 1.0, -1.1), (0.2, -1.0, math.exp(0.2)), (-0.2, 1.0, -math.exp(-0.2)), (-0.2, -1.0, 0.9)])
def test_clipping_binds_where_it_would_help(delta, advantage, want):
    method = quiet(make(FlowGRPO, beta=0.0, clip_range=0.1))
    assert method.loss(step(delta, advantage)).item() == pytest.approx(want, rel=1e-5)


def test_the_guarded_ratio_has_mean_one():
    """Of x_s drawn from the old law N(mu_old, s^2): E[delta] = -(mu - mu_old)^2 / 2 s^2, which the guard adds back."""
    method, n, s, mu = quiet(make(FlowGRPO, beta=0.0, guard=True)), 200_000, 0.3, 0.02
    torch.manual_seed(0)
    x = s * torch.randn(n, 1)
    one = lambda v: torch.full((n, 1), v)
    new, old = Gaussian(one(mu), one(s)), Gaussian(one(0.0), one(s))
    rest = {"x_t": x, "x_s": x, "t": torch.ones(n), "s": torch.zeros(n), "cond": {}}
    drawn = StepBatch(new, new.log_prob(x), old.log_prob(x), torch.ones(n), **rest, old_mean=old.mean)
    log_rho = method.ratio(drawn).log()
    assert abs(log_rho.mean()) < 4 * log_rho.std() / n**0.5
    assert log_rho.std().item() == pytest.approx(mu, rel=0.02)  # (mu / s) s: the same at every noise level
    assert abs(drawn.ratio.log().mean().item() + mu**2 / (2 * s**2)) < 1e-3  # without it: below


def test_the_guard_gives_the_velocity_as_much_gradient_at_every_step():
    """mu = x + (1 + a^2 / 2) (s - t) v + ..., so d log rho / dv is -(1 + a^2 / 2) (s - t) eps / D whatever s is, where the
    ratio is 1; unguarded it goes with (t - s) / std."""
    method, process, a, A = quiet(make(FlowGRPO, beta=0.0, guard=True)), Flow(), 0.7, 1.5
    x_t, eps = torch.randn(1, 4), torch.randn(1, 4)
    for t, s in ((0.9, 0.85), (0.5, 0.2), (0.3, 0.1)):
        v, (t, s) = torch.randn(1, 4, requires_grad=True), (T([t]), T([s]))
        gaussian = FlowSDE(a)(process, x_t, x_t - t * v, x_t + (1 - t) * v, t, s)
        old = Gaussian(gaussian.mean.detach(), gaussian.std)
        x_s = old.sample(eps)
        rest = {"x_t": x_t, "x_s": x_s, "t": t, "s": s, "cond": {}, "old_mean": old.mean}
        loss = method.loss(StepBatch(gaussian, gaussian.log_prob(x_s), old.log_prob(x_s), T([A]), **rest))
        (grad,) = torch.autograd.grad(loss.sum(), v)
        torch.testing.assert_close(grad, A * (1 + a**2 / 2) * eps / 4)
    with pytest.raises(ValueError, match="guard balances the steps of FlowSDE"):
        make(FlowGRPO, rollout=Sampler(4, 1.0, DDIM(1.0)), guard=True)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
@pytest.mark.parametrize("cls", [FlowGRPO, DPOK, PRDP, SDPO, PCL, BranchGRPO], ids=lambda c: c.__name__)
def test_methods_start_at_their_identities_and_move_what_is_trained(tmp_path, cls, family, adapter):
    method = make(cls, family("tiny", adapter), **({"samples_per_prompt": 1, "splits": (0, 1)} if cls is BranchGRPO else {}))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    steps, evaluate = [], method.evaluate
    method.evaluate = lambda *args: steps.append(evaluate(*args)) or steps[-1]
    trainer(tmp_path).fit(method, prompts())
    assert torch.equal(steps[0].ratio, torch.ones_like(steps[0].ratio)) or (steps[0].ratio - 1).abs().max() < 1e-5
    if method.uses_reference:
        assert steps[0].gaussian.kl(steps[0].reference).abs().max() < 1e-8
    now = dict(method.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], now[n])}
    assert moved and all(now[n].requires_grad for n in moved)
    assert any(n.startswith("policy.") for n in moved)


# DPOK


def test_dpok_stops_at_both_ends_of_its_band():
    method = quiet(make(DPOK, StableDiffusion("tiny"), reward_weight=10.0, kl_weight=0.5, clip_range=0.1))
    method.value.forward = lambda x_t, text, t: torch.full((1,), 0.25)
    for delta, slope in ((0.05, -10 * 0.75 * math.exp(0.05)), (0.2, 0.0), (-0.2, 0.0)):
        s = step(delta, 1.0, mean=0.3, ref_mean=0.1)._replace(cond={"text": torch.zeros(1, 1, 1)})
        loss = method.loss(s)
        rho = min(max(math.exp(delta), 0.9), 1.1)
        assert loss.item() == pytest.approx(-10 * 0.75 * rho + 0.5 * 0.2**2 / (2 * 0.5**2) + 0.75**2, rel=1e-5)
        loss.sum().backward()
        assert s.log_prob.grad.item() == pytest.approx(slope, rel=1e-5)


def test_dpoks_baseline_learns_the_reward_at_its_own_rate(tmp_path):
    method = make(DPOK, StableDiffusion("tiny"), value_lr=1e-2, optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.0))
    losses, log = [], method.log_mean
    method.log_mean = lambda name, value, n: (losses.append(value.item()) if name == "train/value_loss" else None, log(name, value, n))[1]
    policy = [p.detach().clone() for p in method.policy.parameters()]
    trainer(tmp_path).fit(method, prompts(2, 15))
    k = len(losses) // 15
    assert sum(losses[-k:]) < 0.5 * sum(losses[:k])
    assert all(torch.equal(a, b) for a, b in zip(policy, method.policy.parameters()))


@pytest.mark.parametrize("cls", [DPOK, PCL], ids=lambda c: c.__name__)
def test_a_value_functions_gradient_does_not_shrink_the_policys(tmp_path, cls):
    """A reward of 20 makes the value's gradient large; both are clipped to 0.1, each by itself."""
    method, norms = make(cls, StableDiffusion("tiny"), max_grad_norm=0.1), []
    method.reward.forward = lambda images, texts: 20 + 100 * (1 - images.mean((1, 2, 3)))
    norm = lambda group: torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm().item()
    method.optimizer = lambda groups: torch.optim.SGD(groups, lr=0.0)
    clip = method.on_before_optimizer_step

    def watched(optimizer):
        before = [norm(group) for group in optimizer.param_groups]
        clip(optimizer)
        norms.append((before, [norm(group) for group in optimizer.param_groups]))

    method.on_before_optimizer_step = watched
    trainer(tmp_path).fit(method, prompts(2))
    for before, after in norms:
        assert before[1] > 1  # the value's
        assert after == pytest.approx([min(n, 0.1) for n in before], rel=1e-3)


@pytest.mark.parametrize("cls", [PRDP, SDPO, D3PO], ids=lambda c: c.__name__)
def test_pairs_are_of_one_prompt(cls):
    with pytest.raises(ValueError, match="compares 2 trajectories of a prompt: give a multiple of 2"):
        make(cls, samples_per_prompt=3).draw_trajectories({"prompt": ["a"] * 3, "columns": {}})


def test_a_window_is_the_rollouts_alone():
    sampler = FLOW(6)
    method = make(FlowGRPO, rollout=sampler, sampler=sampler, window=2)
    assert isinstance(method.rollout.transition, Windowed) and isinstance(method.sampler.transition, FlowSDE)


def test_a_window_that_does_not_fit_is_refused():
    for range in ((2, 4), (0, 6), (3, 9)):
        with pytest.raises(ValueError, match="a window of 3 does not fit"):
            make(FlowGRPO, rollout=FLOW(6), window=3, window_range=range)


# PRDP


@pytest.mark.parametrize("clip_range", [1e9, None, 1e-6], ids=["inside", "some clamped", "clamped"])
def test_prdps_two_passes_are_the_gradient_of_the_one_graph(tmp_path, clip_range):
    method = make(PRDP, StableDiffusion("tiny"), samples_per_prompt=2, beta=3.0, clip_range=clip_range or 0.0, minibatch=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), max_grad_norm=1e9)
    kept, learn = {}, method.optimizer_steps

    def moved(collected):
        trajectory, reward = collected
        torch.manual_seed(0)
        move(method.policy, 0.01)  # away from old and reference
        if clip_range is None:  # the larger square is the clamped one, with some of the steps inside
            reward = reward.new_tensor([1e3, -1e3, -1e3, 1e3])
            rows, i = (c.flatten() for c in torch.meshgrid(torch.arange(4), method.trained_steps(trajectory), indexing="ij"))
            with torch.no_grad():
                step = method.evaluate(trajectory, torch.zeros(4, 4), rows, i)
            method.clip_range = (step.log_prob - step.old_log_prob).abs().median().item()
        kept.update(trajectory=trajectory, reward=reward)
        yield from learn((trajectory, reward))
        kept["grad"] = [p.grad.clone() for p in method.policy.parameters() if p.requires_grad]

    method.optimizer_steps = moved
    trainer(tmp_path).fit(method, prompts(2))
    tr, r = kept["trajectory"], kept["reward"]
    steps = method.trained_steps(tr)
    rows, i = (c.flatten() for c in torch.meshgrid(torch.arange(4), steps, indexing="ij"))
    m = tr.minibatch(rows, i)
    gaussian, _, _ = method.rollout.gaussian(method.policy, m["x_t"], m["t"], m["s"], m["cond"])
    log_prob = gaussian.log_prob(m["x_s"]).view(4, -1)
    with torch.no_grad(), method.policy.reference():
        reference = method.rollout.gaussian(method.policy, m["x_t"], m["t"], m["s"], m["cond"])[0].log_prob(m["x_s"]).view(4, -1)
    old, clip_range, loss = m["log_prob"].view(4, -1), method.clip_range, 0
    for a, b in ((0, 1), (2, 3)):
        square = lambda lp: (3.0 * ((lp - reference)[a].sum() - (lp - reference)[b].sum()) - (r[a] - r[b])).square()
        loss = loss + torch.maximum(square(log_prob), square(torch.max(torch.min(log_prob, old + clip_range), old - clip_range))) / 2
    want = torch.autograd.grad(loss, [p for p in method.policy.parameters() if p.requires_grad])
    scale = max(g.abs().max() for g in want)
    for a, b in zip(kept["grad"], want):
        torch.testing.assert_close(a / scale, b / scale, atol=1e-4, rtol=1e-3)
    assert scale > 0


# BranchGRPO


def test_a_node_is_judged_by_its_leaves_and_learnt_from_once(tmp_path):
    method = make(BranchGRPO, StableDiffusion("tiny"), rollout=Sampler(5, 1.0, DDIM(1.0)), splits=(0, 2), samples_per_prompt=1, minibatch=100, max_advantage=9.0)
    reward = T([[1.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    method.reward.forward = lambda images, texts: reward.flatten()
    kept, update, evaluate, learnt = {}, method.update, method.evaluate, []
    method.update = lambda tr, a, groups, steps: kept.update(tr=tr, a=a) or update(tr, a, groups, steps)
    method.evaluate = lambda tr, a, rows, i, *rest: learnt.extend(zip(rows.tolist(), i.tolist())) or evaluate(tr, a, rows, i, *rest)
    trainer(tmp_path).fit(method, prompts(2))
    tr, a = kept["tr"], kept["a"]
    assert tr.prompts == ["p0"] * 4 + ["p1"] * 4
    x = tr.x_s[:4]
    for i in (0, 1):  # two nodes
        assert torch.equal(x[0, i], x[1, i]) and torch.equal(x[2, i], x[3, i]) and not torch.equal(x[0, i], x[2, i])
    assert all(not torch.equal(x[0, i], x[1, i]) for i in (2, 3, 4)) and torch.equal(tr.x_t[0, 2], tr.x_t[1, 2])
    torch.testing.assert_close(a[:4, 0], T([1.0, 1.0, -1.0, -1.0]) / 2**0.5)  # nodes 2 and 0
    leaf = (reward[0] - 1.0) / reward[0].std()
    torch.testing.assert_close(a[:4, 4], leaf)
    assert not a[4:].any()
    steps = method.trained_steps(tr).tolist()
    want = {(row, i) for i in steps for row in ((0, 2, 4, 6) if i < 2 else range(8))}
    assert set(learnt) == want and len(learnt) == len(want)


def test_noise_is_larger_where_the_tree_splits_and_the_likelihood_is_the_plain_steps():
    policy, drawn = StableDiffusion("tiny"), {}
    for noise in (1.0, 4.0):
        torch.manual_seed(0)
        drawn[noise] = Sampler(4, 1.0, DDIM(1.0))(policy, ["p0"], hooks=(Tree((0,), noise),), record=True).trajectory
    moved = {noise: tr.x_s[:, 0] - tr.mean[:, 0] for noise, tr in drawn.items()}  # from one x_t
    torch.testing.assert_close(moved[4.0], 4 * moved[1.0], atol=1e-5, rtol=1e-5)
    tr = drawn[4.0]
    std = DDIM(1.0)(policy.process, tr.x_t[:, 0], tr.x_t[:, 0], tr.x_t[:, 0], tr.t[:, 0], tr.s[:, 0]).std
    torch.testing.assert_close(tr.log_prob[:, 0], Gaussian(tr.mean[:, 0], std).log_prob(tr.x_s[:, 0]))


def test_after_the_last_split_pruning_leaves_the_best_and_the_worst_leaf(tmp_path):
    method = make(BranchGRPO, StableDiffusion("tiny"), rollout=Sampler(4, 1.0, DDIM(1.0)), splits=(0, 1), samples_per_prompt=1, prune=True)
    method.reward.forward = lambda images, texts: T([1.0, 0.5, 0.7, 0.2])
    learnt, evaluate = [], method.evaluate
    method.evaluate = lambda tr, a, rows, i, *rest: learnt.extend(zip(rows.tolist(), i.tolist())) or evaluate(tr, a, rows, i, *rest)
    trainer(tmp_path).fit(method, prompts(1))
    steps = method.trained_steps(method.draw_trajectories({"prompt": ["p0"], "columns": {}}, (Tree((0, 1)),), 4)[0]).tolist()
    after = {(row, i) for row in (0, 3) for i in steps if i > 1}
    assert after and set(learnt) == {(0, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 1)} | after


@pytest.mark.parametrize("slide_every, skipped", [(0, [{3, 4}] * 3), (1, [{3, 4}, {2, 3}, {1, 2}, {1, 2}])])
def test_steps_pruned_by_depth_slide_to_the_last_split(tmp_path, slide_every, skipped):
    method = make(BranchGRPO, StableDiffusion("tiny"), rollout=Sampler(6, 1.0, DDIM(1.0)), splits=(0, 1), samples_per_prompt=1, skip=(3, 4), slide_every=slide_every)
    learnt, update = [], method.update
    method.update = lambda tr, a, groups, steps: learnt.append(set(range(6)) - set(steps.tolist())) or update(tr, a, groups, steps)
    trainer(tmp_path).fit(method, prompts(1, len(skipped)))
    assert learnt == skipped


def test_trees_of_any_rewards_are_learnt_from_in_as_many_parts():
    """Ranks draw different trees, and each backward pass is a meeting point of all ranks."""
    method = make(BranchGRPO, StableDiffusion("tiny"), splits=(0, 1, 2), samples_per_prompt=1, prune=True, minibatch=2)
    steps, parts = torch.arange(4), []
    for leaves in ((0,), (0, 7)):  # all alike, or not
        method.kept = torch.zeros(1, 8, dtype=torch.bool)
        method.kept[0, list(leaves)] = True
        parts.append([len(rows) for rows, _ in method.minibatches(torch.arange(8)[:, None], steps)])
    assert len(parts[0]) == len(parts[1]) and sum(parts[0]) == 15 and sum(parts[1]) == 16 and min(parts[0]) > 0


# SDPO


def test_rewards_between_three_exact_ones():
    """Unit vectors in a plane at angles 0, 30, 100, 60, 20 degrees: the third is least like the ends."""
    angle = torch.deg2rad(T([0.0, 30.0, 100.0, 60.0, 20.0]))
    x_0 = torch.stack([angle.cos(), angle.sin()], 1).view(1, 5, 2, 1, 1)
    asked = []
    got = interpolated(x_0, lambda x: asked.append(x) or T([1.0, 5.0, 2.0]))[0]
    assert torch.equal(torch.cat(asked), x_0[0, [0, 2, 4]])
    c = lambda i, j: max((angle[i] - angle[j]).cos().item(), 1e-6)
    mean = lambda i: (1 * c(i, 0) + 5 * c(i, 2) + 2 * c(i, 4)) / (c(i, 0) + c(i, 2) + c(i, 4))
    torch.testing.assert_close(got, T([1.0, mean(1), 5.0, mean(3), 2.0]))


def test_sdpos_loss_is_the_larger_square():
    method = quiet(make(SDPO, StableDiffusion("tiny"), rollout=Sampler(4, 1.0, DDIM(1.0)), clip_range=0.1, decay=0.5))
    t = method.rollout.timesteps(method.policy)[2]  # lambda^2
    x = torch.zeros(2, 1)
    rest = {"x_t": x, "x_s": x, "t": T([t, t]), "s": T([t, t]), "cond": {}}
    for l_a, l_b, A_a, A_b in ((0.3, -0.05, 1.0, -0.5), (0.3, -0.3, 0.01, 0.0)):
        s = StepBatch(Gaussian(x, x), T([l_a, l_b]), torch.zeros(2), T([A_a, A_b]), **rest)
        clamp = lambda v: max(-0.1, min(0.1, v))
        want = max((0.25 * (l_a - l_b) - (A_a - A_b)) ** 2, (0.25 * (clamp(l_a) - clamp(l_b)) - (A_a - A_b)) ** 2)
        assert method.loss(s).item() == pytest.approx(want, rel=1e-5)


def test_sdpos_returns_are_normalised_by_prompt_and_step(tmp_path):
    method = make(SDPO, StableDiffusion("tiny"), rollout=Sampler(4, 1.0, DDIM(1.0)), advantage=Group(global_std=False), discount=0.5)
    kept, learn = {}, method.optimizer_steps
    method.optimizer_steps = lambda c: kept.update(tr=c[0], a=c[1]) or learn(c)
    trainer(tmp_path).fit(method, prompts(2))
    a, tr = kept["a"], kept["tr"]
    assert a.shape == (8, 4) and torch.equal(tr.x_t[0, 0], tr.x_t[1, 0])
    assert a.view(2, 4, 4).mean(1).abs().max() < 1e-4 and a.abs().max() > 0.1


def test_sdpos_return_is_the_discounted_sum_of_a_steps_reward_and_all_later_ones():
    """Of three steps, all scored: 0, 1, 2 and 3 of the four trajectories' first estimates and so on."""

    class AsTheyAre(torch.nn.Module):
        def forward(self, prompt_id, reward):
            return reward

    method = quiet(make(SDPO, StableDiffusion("tiny"), rollout=Sampler(3, 1.0, DDIM(1.0)), advantage=AsTheyAre(), discount=0.5, max_advantage=1e9, samples_per_prompt=2))
    method.trainer, asked = trainer(None), []
    method.reward.forward = lambda images, texts: asked.extend(texts) or torch.arange(12.0)[len(asked) - len(texts) : len(asked)]
    _, a = method.collect({"prompt": ["p", "q"]})
    r = torch.arange(12.0).view(3, 4).T  # (trajectories, steps)
    torch.testing.assert_close(a, torch.stack([r[:, 0] + 0.5 * r[:, 1] + 0.25 * r[:, 2], r[:, 1] + 0.5 * r[:, 2], r[:, 2]], 1))
    assert asked == ["p", "p", "q", "q"] * 3


def test_sdpos_new_prompts_take_the_statistics_of_their_step_alone(tmp_path):
    method = make(SDPO, StableDiffusion("tiny"), rollout=Sampler(4, 1.0, DDIM(1.0)), advantage=PerPrompt(min_count=99))
    kept, learn = {}, method.optimizer_steps
    method.optimizer_steps = lambda c: kept.update(a=c[1]) or learn(c)
    method.reward.forward = lambda images, texts: 20 - images.mean((1, 2, 3))  # returns of 80, 60, 40 and 20
    trainer(tmp_path).fit(method, prompts(2))
    torch.testing.assert_close(kept["a"].mean(0), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(kept["a"].std(0, correction=0), torch.ones(4), atol=0.1, rtol=0)


# PCL


def test_the_soft_optimal_policy_and_its_value_leave_no_residual():
    """Three steps x' = x + N(0, 1) in one dimension, r(x) = x: p* adds 1 / alpha to each mean, V(x_k) = x_k + (3 - k) / (2 alpha)."""
    alpha, x = 2.0, torch.randn(50, 4).cumsum(1)
    value = x[:, :3] + torch.arange(3, 0, -1) / (2 * alpha)
    move = x.diff(dim=1)
    log_ratio = (move.square() - (move - 1 / alpha).square()) / 2
    for length in (1, 2, 3, None):
        method = make(PCL, StableDiffusion("tiny"), rollout=Sampler(3, 1.0, DDIM(1.0)), alpha=alpha, length=length)
        assert method.residual(log_ratio, value, x[:, 3]).abs().max() < 1e-5
        assert method.residual(0 * log_ratio, value, x[:, 3]).abs().mean() > 0.1


@pytest.mark.parametrize("length, want", [(1, [1.8, 1.6, 0.4]), (2, [3.4, 2.0, 0.4]), (3, [3.8, 2.0, 0.4])])
def test_a_path_ends_after_its_length_or_with_the_reward(length, want):
    """V = 3, 5, 7, r = 8; log p / p_ref = 0.1, 0.2, 0.3; alpha 2: 5 - 3 - 2 x 0.1, and so on."""
    method = make(PCL, StableDiffusion("tiny"), rollout=Sampler(3, 1.0, DDIM(1.0)), alpha=2.0, length=length)
    torch.testing.assert_close(method.residual(T([[0.1, 0.2, 0.3]]), T([[3.0, 5.0, 7.0]]), T([8.0])), T([want]))


@pytest.mark.parametrize("length", [1, 2, None])
def test_pcls_two_passes_are_the_gradient_of_the_one_graph(tmp_path, length):
    """Of policy and value, against the mean square of paths that are added up one by one."""
    sgd = lambda p: torch.optim.SGD(p, lr=0.0)
    policy, rollout = StableDiffusion("tiny"), Sampler(3, 2.0, DDIM(1.0))
    method = make(PCL, policy, rollout=rollout, samples_per_prompt=2, alpha=3.0, length=length, minibatch=3, optimizer=sgd, value_lr=0.0, max_grad_norm=1e9)
    kept, learn = {}, method.optimizer_steps
    trained = lambda: [p for p in method.parameters() if p.requires_grad]

    def moved(collected):
        trajectory, reward = collected
        torch.manual_seed(0)
        move(method.policy, 0.01)
        yield from learn((trajectory, reward))
        kept.update(trajectory=trajectory, reward=reward, grad=[p.grad.clone() for p in trained()])

    method.optimizer_steps = moved
    trainer(tmp_path).fit(method, prompts(1))
    tr, r = kept["trajectory"], kept["reward"]
    rows, i = (c.flatten() for c in torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij"))
    assert method.trained_steps(tr).tolist() == [0, 1, 2]
    step = quiet(method).evaluate(tr, tr.log_prob, rows, i)
    value = method.value(step.x_t, method.policy.summary(step.cond), step.t).view(2, 3)
    log_ratio, loss = step.log_ref_ratio.view(2, 3), 0
    for n in range(2):
        for k in range(3):
            end = min(k + (length or 3), 3)
            after = r[n] if end == 3 else value[n, end]
            loss = loss + (after - value[n, k] - 3.0 * sum(log_ratio[n, j] for j in range(k, end))).square() / 6
    want = torch.autograd.grad(loss, trained())
    for part in ("policy", "value"):
        pairs = [(a, b) for (name, p), a, b in zip([x for x in method.named_parameters() if x[1].requires_grad], kept["grad"], want) if name.startswith(part)]
        scale = max(b.abs().max() for _, b in pairs)
        assert scale > 0
        for a, b in pairs:
            torch.testing.assert_close(a / scale, b / scale, atol=1e-4, rtol=1e-3)
