"""Preference methods that learn from the policy's own samples."""

import math

import lightning as L
import pytest
import torch
from parts import Darkness, T, prompts, rollout, trainer

from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.algorithms.preference.nash_md import Mixture, NashMD
from lit_align.algorithms.preference.online_dpo import OnlineDPO
from lit_align.algorithms.preference.spin import SPINDiffusion
from lit_align.algorithms.trajectory_preference.d3po import D3PO, preferred
from lit_align.algorithms.trajectory_preference.dense_reward import DenseReward
from lit_align.algorithms.trajectory_preference.pso import PSO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, Gaussian
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def trajectories(cls, policy, **kwargs):
    defaults = {"rollout": rollout(policy), "minibatch": 4, "optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}
    return cls(policy=policy, reward=Darkness(), **(defaults | kwargs))


def step(log_ratio, advantage, t=(500,)):
    """A StepBatch of pairs (one dimension) whose log p_theta / p_ref are given; requires grad in log_ratio."""
    n = len(log_ratio)
    x_s, log_prob = torch.zeros(n, 1), log_ratio
    reference = Gaussian(torch.zeros(n, 1), torch.ones(n, 1))
    log_prob = log_ratio + reference.log_prob(x_s)
    return StepBatch(reference, log_prob, log_prob.detach(), advantage, x_s, x_s, T(t * n), T(t * n), {}, reference)


def test_labels_of_pairs_ties_are_zero():
    assert preferred(T([1.0, 0.0, 0.3, 0.7, 0.5, 0.5])).tolist() == [1, -1, -1, 1, 0, 0]


def test_d3pos_loss_lies_in_its_band_and_is_flat_outside_the_clip():
    d3po = trajectories(D3PO, StableDiffusion("tiny", LoRA(rank=2)))
    inside = T([0.05, -0.05], requires_grad=True)
    loss = d3po.loss(step(inside, T([1.0, -1.0])))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.1 * 0.1)), abs=1e-6)
    for ratios, value in (([9.0, -9.0], 0.68316), ([-9.0, 9.0], 0.70323)):
        z = T(ratios, requires_grad=True)
        loss = d3po.loss(step(z, T([1.0, -1.0])))
        assert loss.item() == pytest.approx(value, abs=1e-5)
        loss.backward()
        assert not z.grad.any()
    z = T([0.02, 0.01], requires_grad=True)
    tie = d3po.loss(step(z, T([0.0, 0.0])))
    tie.backward()
    assert tie.item() == pytest.approx(math.log(2)) and not z.grad.any()


def test_psos_argument_is_bounded_by_its_beta_times_the_band():
    pso = trajectories(PSO, StableDiffusion("tiny", LoRA(rank=2)))
    worst = pso.loss(step(T([-9.0, 9.0]), T([1.0, -1.0]))).item()
    assert worst == pytest.approx(math.log1p(math.exp(50 * (math.log(1.1) - math.log(0.9)))), abs=1e-4)


def test_dense_reward_on_given_steps():
    dense = trajectories(DenseReward, StableDiffusion("tiny", LoRA(rank=2)), samples_per_prompt=3, rollout=Sampler(50, 1.0, DDIM(1.0)))
    grid = dense.rollout.timesteps(dense.policy)[:-1]
    w = dense.weight(grid.float()) / 50
    assert w[0].item() == pytest.approx(0.10051805, abs=1e-6) and w[-1].item() == pytest.approx(5.7561e-4, abs=1e-7)
    assert w[:10].sum().item() == pytest.approx(0.65469571, abs=1e-5)
    first = (int(grid[0]),)
    same = dense.loss(step(torch.zeros(3), T([3.0, 2.0, 1.0]), first)).item() / (50 * 0.10051805)
    assert same == pytest.approx(math.log(6), abs=1e-5)
    far = T([1.0, 0.0, -1.0], requires_grad=True)
    loss = dense.loss(step(far, T([3.0, 2.0, 1.0]), first))
    a = 12.5 * 5e-4
    want = math.log(1 + math.exp(-a) + math.exp(-2 * a)) + math.log1p(math.exp(-a))
    assert loss.item() / (50 * 0.10051805) == pytest.approx(want, abs=1e-5)
    loss.backward()
    assert far.grad[0] == 0 and far.grad[2] == 0  # beyond the trust region


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
@pytest.mark.parametrize("cls", [D3PO, PSO, DenseReward], ids=lambda c: c.__name__)
def test_trajectories_start_at_their_identity_and_move_the_policy(tmp_path, cls, family, adapter):
    method = trajectories(cls, family("tiny", adapter), **({"samples_per_prompt": 4} if cls is DenseReward else {}))
    trained = [p for p in method.policy.parameters() if p.requires_grad]
    before, seen = [p.detach().clone() for p in trained], []
    loss = method.loss
    method.loss = lambda s: seen.append((s, loss(s).detach())) or loss(s)
    trainer(tmp_path).fit(method, prompts())
    first, value = seen[0]
    assert first.log_ref_ratio.abs().max() < 1e-5  # the policy is its reference
    expected = math.log(2) if cls is not DenseReward else math.log(24)
    if cls is DenseReward:
        value = value / method.weight(first.t).view(-1, 4)[:, 0]
    torch.testing.assert_close(value, torch.full_like(value, expected), atol=1e-4, rtol=0)
    assert any(not torch.equal(a, b) for a, b in zip(before, trained))


def test_d3pos_pairs_start_from_one_noise_and_go_apart(tmp_path):
    method = trajectories(D3PO, StableDiffusion("tiny", LoRA(rank=2)))
    kept = {}
    learn = method.optimizer_steps
    method.optimizer_steps = lambda c: kept.update(t=c[0]) or learn(c)
    trainer(tmp_path).fit(method, prompts(2))
    x, end = kept["t"].x_t[:, 0], kept["t"].x_s[:, -1]
    assert torch.equal(x[0], x[1]) and torch.equal(x[2], x[3]) and not torch.equal(x[0], x[2])
    assert not torch.equal(end[0], end[1])


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_a_moving_reference_is_where_the_policy_was_when_it_was_refreshed(adapter):
    policy = StableDiffusion("tiny", adapter)
    policy.add_reference(moving=True)
    x, t, cond = torch.randn(2, *policy.latent_shape), T([10, 700]), policy.condition(["a", "b"])

    def now():
        with torch.no_grad():
            return policy.denoise(x, t, cond)

    def then():
        with policy.reference():
            return now()

    def move():
        for p in policy.parameters():
            if p.requires_grad:
                p.data += 0.05 * torch.randn_like(p)

    base = now()
    torch.testing.assert_close(then(), base)
    move()
    first = now()
    torch.testing.assert_close(then(), base)
    policy.update_reference()
    torch.testing.assert_close(then(), first)
    move()
    torch.testing.assert_close(then(), first)
    assert not torch.allclose(now(), first)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained and not any("reference" in n or "_frozen" in n for n in trained)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_a_moving_reference_survives_a_checkpoint(tmp_path, adapter):
    make = lambda: OnlineDPO(policy=StableDiffusion("tiny", adapter), reward=Darkness(), rollout=Sampler(2, 1.0), updates=1, refresh_every=2,
                             optimizer=lambda p: torch.optim.SGD(p, lr=1e-2), beta=100.0)  # fmt: skip
    options = {"max_epochs": -1, "enable_checkpointing": False}
    L.seed_everything(3, verbose=False)
    whole = make()
    trainer(tmp_path, max_steps=5, **options).fit(whole, prompts(4, 5))
    L.seed_everything(3, verbose=False)
    half = make()
    t = trainer(tmp_path, max_steps=3, **options)
    t.fit(half, prompts(4, 5))
    t.save_checkpoint(tmp_path / "half.ckpt")
    L.seed_everything(3, verbose=False)
    rest = make()
    trainer(tmp_path, max_steps=5, **options).fit(rest, prompts(4, 2), ckpt_path=tmp_path / "half.ckpt")
    a, b = whole.state_dict(), rest.state_dict()
    assert any("reference" in k or "_frozen" in k for k in a) and a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_a_test_compares_with_the_base_though_the_reference_moved(tmp_path, adapter):
    make = lambda: OnlineDPO(policy=StableDiffusion("tiny", adapter), reward=Darkness(), rollout=Sampler(2, 1.0), updates=1, refresh_every=1,
                             sampler=Sampler(2, 1.0), rewards=[Darkness()], optimizer=lambda p: torch.optim.SGD(p, lr=1.0), beta=100.0)  # fmt: skip
    moved = make()
    t = trainer(tmp_path)
    t.fit(moved, prompts(4, 3))
    t.save_checkpoint(tmp_path / "moved.ckpt")
    tested, batch = make(), {"prompt": ["a"], "index": [0]}
    base = tested.sample(batch)["image"]
    found, baseline = [], tested.baseline
    tested.baseline = lambda b: found.append(baseline(b)) or found[-1]
    trainer(tmp_path).test(tested, torch.utils.data.DataLoader([batch], batch_size=None), ckpt_path=tmp_path / "moved.ckpt")
    torch.testing.assert_close(found[0]["image"], base)
    assert not torch.allclose(tested.sample(batch)["image"], base, atol=1e-3)


def online(cls, adapter=None, **kwargs):
    policy = StableDiffusion("tiny", adapter or LoRA(rank=2))
    if cls is not SPINDiffusion:
        kwargs["reward"] = Darkness()
    method = cls(policy=policy, rollout=Sampler(2, 1.0), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), **kwargs)
    method.trainer, method.log = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), lambda *a, **k: None
    method.trainer.training = True
    policy.add_reference(moving=method.moves_reference)
    return method


def test_online_dpo_pairs_the_best_with_the_worst_and_leaves_alike_prompts_out():
    method = online(OnlineDPO, samples_per_prompt=3)
    latents = torch.arange(9.0).view(9, 1, 1, 1).expand(9, *method.policy.latent_shape)
    score = T([0.2, 0.9, 0.1, 0.5, 0.5, 0.5, 0.0, 0.0, 1.0])
    method.draw_latents, method.policy.decode = lambda prompts: latents, lambda z: z
    method.reward.forward = lambda images, prompts: score
    pairs = method.collect({"prompt": ["a", "b", "c"], "index": [4, 5, 6]})
    assert pairs["prompt"] == ["a", "c"] and pairs["index"] == [4, 6]
    assert pairs["win_latents"][:, 0, 0, 0].tolist() == [1, 8] and pairs["lose_latents"][:, 0, 0, 0].tolist() == [2, 6]
    score.fill_(1)
    assert method.collect({"prompt": ["a", "b", "c"], "index": [4, 5, 6]}) is None


@pytest.mark.parametrize("key", ["win", "image"])
def test_spins_losers_are_the_references_samples(key):
    method = online(SPINDiffusion, learns_from=key)
    for p in method.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn_like(p)
    win = torch.randn(2, *method.policy.latent_shape)
    batch = {"prompt": ["a", "b"], "index": [0, 1], f"{key}_latents": win}
    torch.manual_seed(1)
    pairs = method.collect(batch)
    torch.manual_seed(1)
    with method.policy.reference():
        want = method.rollout(method.policy, ["a", "b"]).x
    torch.testing.assert_close(pairs["lose_latents"], want)
    assert torch.equal(pairs["win_latents"], win)
    torch.manual_seed(1)
    assert not torch.allclose(method.rollout(method.policy, ["a", "b"]).x, want, atol=1e-3)


def test_the_mixtures_ends_are_policy_and_reference():
    method = online(NashMD)
    for p in method.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn_like(p)
    draw = lambda hook: method.rollout(method.policy, ["a"], seeds=[3], hooks=(hook,)).x
    with method.policy.reference():
        reference = draw(None)
    torch.testing.assert_close(draw(Mixture(0.0)), draw(None))
    torch.testing.assert_close(draw(Mixture(1.0)), reference)


def test_nash_md_drives_the_gap_to_the_preference():
    method = online(NashMD, beta=2.0)
    from lit_align.algorithms.preference.preference import Errors

    e = Errors(*(T([x, x]) for x in (0.0, 0.3, 0.0, 0.0)), batch={"p": T([0.8, 0.5])})
    torch.testing.assert_close(method.loss(e), T([(0.6 - 0.6) ** 2, 0.6**2]))
    p = method.preference(T([[[[0.2]]], [[[0.5]]]]), T([[[[0.7]]], [[[0.5]]]]), ["a", "b"])
    torch.testing.assert_close(p, T([1 / (1 + math.exp(-0.5 / 0.25)), 0.5]))


@pytest.mark.parametrize("cls", [OnlineDPO, SPINDiffusion, NashMD], ids=lambda c: c.__name__)
def test_collected_pairs_are_learnt_from(tmp_path, cls):
    policy = StableDiffusion("tiny", LoRA(rank=2))
    rest = {} if cls is SPINDiffusion else {"reward": Darkness()}
    method = cls(policy=policy, rollout=Sampler(2, 1.0), updates=3, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), **rest)
    losses, measure = [], method.measure
    method.measure = lambda pairs, stage: losses.append(measure(pairs, stage)) or losses[-1]
    trained = [p for p in policy.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    data = prompts(4, 2, win=torch.rand(4, 3, policy.resolution, policy.resolution))
    t = trainer(tmp_path)
    t.fit(method, data)
    assert t.global_step == 6 and len(losses) == 6
    if cls is not NashMD:
        assert losses[0].item() == pytest.approx(math.log(2), abs=1e-5)
    assert all(not torch.equal(a, b) for a, b in zip(before, trained))
