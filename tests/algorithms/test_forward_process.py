"""DiffusionNFT, AWM, DGPO, CRD, and the old policies they stand on."""

import math

import lightning as L
import pytest
import torch
from parts import Darkness, T, prompts, trainer

from lit_align.algorithms.forward_process.awm import AWM
from lit_align.algorithms.forward_process.crd import CRD
from lit_align.algorithms.forward_process.dgpo import DGPO
from lit_align.algorithms.forward_process.forward_process import NoisedBatch, ramp
from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Frozen, Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

METHODS = [DiffusionNFT, AWM, DGPO, CRD]
ADAPTERS = pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
FAMILIES = pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)


def tiny(family=StableDiffusion3, adapter=None):
    """The same weights every time, those of the adapter too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family("tiny", adapter or LoRA(rank=2))


def make(cls, policy=None, steps=3, **kwargs):
    defaults = {
        "rollout": Sampler(steps, 1.0),
        "samples_per_prompt": 3,
        "minibatch": 6,
        "optimizer": lambda p: torch.optim.SGD(p, lr=1.0),
    }
    return cls(policy=policy or tiny(), reward=Darkness(), **(defaults | kwargs))


def alone(cls, policy=None, **kwargs):
    """A method outside a fit."""
    method = make(cls, policy, **kwargs)
    method.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    method.log_mean = lambda *a: None
    method.setup("fit")
    return method


def trained(policy):
    return [p for p in policy.parameters() if p.requires_grad]


def move(policy, seed, scale=0.05):
    g = torch.Generator().manual_seed(seed)
    for p in trained(policy):
        p.data += scale * torch.randn(p.shape, generator=g)


def predict(policy, guidance_scale=1.0):
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(7))
    t = policy.process.timesteps(10)[T([2, 8])]
    with torch.no_grad():
        return policy.denoise(x, t, policy.condition(["a", "b"]), guidance_scale)


def noised_batch(method, pred, old, target, advantage, ref=None, t=0.6, x_0=0.2, eps=-0.7):
    """Visits of one dimension; lists of numbers, of which pred gets gradient."""
    column = lambda values: T(values).view(-1, 1)
    n = len(pred)
    pred, t = column(pred).requires_grad_(), torch.full((n,), t)
    x_0, eps = torch.full((n, 1), x_0), torch.full((n, 1), eps)
    x_t = method.policy.process.add_noise(x_0, eps, t)
    ref = column(ref) if ref else column(old)
    return NoisedBatch(x_0, x_t, t, column(target), pred, T(advantage), column(old), ref)


# Old policies


@ADAPTERS
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
def test_the_old_policy_is_the_moving_average_of_the_parameters(family, adapter):
    policy, other = tiny(family, adapter), tiny(family, adapter)
    policy.add_reference()
    policy.add_old()
    base, start = predict(policy), [p.detach().clone() for p in trained(policy)]
    move(policy, 1, 0.3)
    now = predict(policy)
    policy.update_old(0.75)
    for p, a, b in zip(trained(other), start, trained(policy), strict=True):
        p.data = 0.75 * a + 0.25 * b.detach()
    with policy.old():
        torch.testing.assert_close(predict(policy), predict(other), atol=1e-5, rtol=1e-4)
        assert not policy.in_reference
    with policy.reference():
        torch.testing.assert_close(predict(policy), base)
    torch.testing.assert_close(predict(policy), now)
    assert not torch.allclose(now, predict(other), atol=1e-4) and not torch.allclose(base, predict(other), atol=1e-4)
    policy.update_old()
    with policy.old():
        torch.testing.assert_close(predict(policy), now)


@ADAPTERS
@pytest.mark.parametrize("moving", [False, True])
def test_policies_of_other_days_do_not_get_mixed_up(adapter, moving):
    policy = tiny(StableDiffusion3, adapter)
    seen = {"reference": predict(policy)}
    policy.add_reference(moving)
    for seed, name in enumerate(("old", "older")):
        move(policy, seed, 0.3)
        policy.add_old(name)
        seen[name] = predict(policy)
    move(policy, 5, 0.3)
    policy.add_old()  # changes nothing
    now = predict(policy)
    inside = {"reference": policy.reference, "old": policy.old, "older": lambda: policy.old("older")}
    for name, enter in inside.items():
        for within, again in inside.items():
            with enter():
                torch.testing.assert_close(predict(policy), seen[name])
                with again():
                    torch.testing.assert_close(predict(policy), seen[within])
                torch.testing.assert_close(predict(policy), seen[name])
        with pytest.raises(KeyError), enter():
            raise KeyError
        torch.testing.assert_close(predict(policy), now)
    names = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert names and not any(f".{key}." in name for key in seen for name in names)
    kept = policy.state_names() - names
    assert all(any(f".{key}." in n for n in kept) == (moving or key != "reference") for key in seen)


def test_who_has_no_old_policy_is_told():
    policy = StableDiffusion("tiny", LoRA(rank=2))
    with pytest.raises(RuntimeError, match="add_old"):
        policy.old()
    with pytest.raises(ValueError, match="choose adapter"):
        StableDiffusion("tiny", Frozen()).add_old()
    with pytest.raises(ValueError, match="text_encoder: false"):
        StableDiffusion("tiny", Full(text_encoder=True)).add_old()


@ADAPTERS
def test_old_policies_are_sharded_with_the_policy(adapter, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    policy, whole = (tiny(StableDiffusion3, adapter) for _ in range(2))
    for p in (policy, whole):
        p.add_reference()
        p.add_old()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        policy.shard(init_device_mesh("cpu", (1,)))
        for p in (policy, whole):
            for q in trained(p):
                q.data += 0.1
            p.update_old(0.25)
        torch.testing.assert_close(predict(policy), predict(whole))
        with policy.old(), whole.old():
            torch.testing.assert_close(predict(policy), predict(whole))
        with policy.reference(), whole.reference():
            torch.testing.assert_close(predict(policy), predict(whole))
    finally:
        torch.distributed.destroy_process_group()


def test_decays_of_the_papers():
    nft = lambda i: ramp(i, 0.0, 0.001, 0.5)
    assert [nft(i) for i in (0, 1, 100, 500, 2000)] == pytest.approx([0, 0.001, 0.1, 0.5, 0.5])
    late = lambda i: ramp(i, 0.0, 0.0075, 0.999, 75)
    assert [late(i) for i in (0, 75, 76, 1000)] == pytest.approx([0, 0, 0.0075, 0.999])
    assert ramp(10, 0.25, 0.005, 0.999) == pytest.approx(0.3)


# The loop


def test_a_prompts_samples_lie_in_a_row_with_their_advantages():
    method, n = alone(DiffusionNFT), 0
    scores = T([[0.1, 0.5], [0.4, 0.5], [0.4, 0.8]])  # (K, B)

    def draw(batch):
        nonlocal n
        n += 1
        return T([n, 10.0 * n]).view(2, 1, 1, 1).expand(2, *method.policy.latent_shape)

    method.draw_latents, method.policy.decode = draw, lambda z: z
    asked = []
    method.reward.forward = lambda images, prompts: asked.append((images[:, 0, 0, 0].tolist(), prompts)) or scores.T.flatten()
    found = method.collect({"prompt": ["p", "q"], "index": [0, 1]})
    assert asked == [([1, 2, 3, 10, 20, 30], list("pppqqq"))]  # in one call, for a reward that normalises
    assert found["x_0"][:, 0, 0, 0].tolist() == [1, 2, 3, 10, 20, 30]
    std = scores.flatten().std(correction=0) + 1e-4
    torch.testing.assert_close(found["advantage"], ((scores - scores.mean(0)) / std).T.flatten())


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
def test_every_sample_is_visited_once_at_each_of_its_times(cls):
    kwargs = {"off_policy": True} if cls is AWM else {}
    method = alone(cls, steps=10, updates=2, minibatch=7, **kwargs)
    t = method.times(12)
    parts = [[(m["row"], m["step"]) for m in part] for part in method.parts({"t": t})]
    seen = [(r, s) for part in parts for rows, steps in part for r, s in zip(rows.tolist(), steps.tolist())]
    assert len(parts) == 2 and sorted(seen) == [(r, s) for r in range(12) for s in range(t.shape[1])]
    first, second = ({r for rows, _ in part for r in rows.tolist()} for part in parts)
    assert len(first) == len(second) == 6 and not first & second  # each sample belongs to one update
    for rows, steps in parts[0]:
        assert len(rows) <= 7
        if method.grouped:
            assert (rows.view(-1, 3) == rows.view(-1, 3)[:, :1] + torch.arange(3)).all() and (
                rows.view(-1, 3)[:, 0] % 3 == 0
            ).all()
            assert (t[rows, steps].view(-1, 3).diff(dim=1) == 0).all()


def test_times_are_the_rollouts():
    grid = Sampler(10, 1.0).timesteps(tiny())[:-1].tolist()
    nft = alone(DiffusionNFT, steps=10).times(300)
    assert nft.shape == (300, 9) and all(len(set(row)) == 9 and set(row) <= set(grid) for row in nft.tolist())
    assert all((nft == t).any() for t in grid)  # whatever is left out, it is not always the same
    dgpo = alone(DGPO, steps=10).times(300)
    assert dgpo.shape == (300, 4) and all(len(set(row)) == 4 for row in dgpo.tolist())
    assert set(dgpo.flatten().tolist()) == set(grid[:7])
    awm = alone(AWM, steps=14, fraction=0.9).times(300)
    grid = Sampler(14, 1.0).timesteps(tiny())[:-1].tolist()
    for edges, times in (
        ([1, 2, 4, 6, 8, 10, 12], awm),
        ([0, 2, 4, 6, 8, 10, 12], alone(AWM, steps=14, min_step=0).times(300)),
    ):
        for j, column in enumerate(times.T.tolist()):  # edges: first + (12 - first) j / 6, rounded down
            assert {grid.index(t) for t in column} == set(range(edges[j], edges[j + 1]))


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
def test_the_gradient_does_not_depend_on_the_minibatch(cls):
    grads, losses = [], []
    for minibatch in (3, 100):
        method = alone(cls, minibatch=minibatch)
        move(method.policy, 0)
        method.noise = lambda x_0: x_0.flip(-1) - 1  # nothing is drawn
        method.manual_backward = lambda loss: loss.backward()
        g = torch.Generator().manual_seed(1)
        x_0, t = (
            torch.randn(6, *method.policy.latent_shape, generator=g),
            Sampler(4, 1.0).timesteps(method.policy)[:3].expand(6, 3),
        )
        collected = {
            "x_0": x_0,
            "t": t,
            "advantage": torch.randn(6, generator=g),
            "cond": method.policy.condition(["a", "b"]),
        }
        for part in method.parts(collected):
            assert len(part) == (6 if minibatch == 3 else 1)
            losses.append(method.accumulate(part, {"index": [0, 1]}).item())
        grads.append([p.grad for p in trained(method.policy)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert any(g.any() for g in grads[0])


@FAMILIES
@ADAPTERS
def test_a_visit_sees_the_policy_the_old_one_and_the_guided_reference_at_one_place(family, adapter):
    method = alone(CRD, tiny(family, adapter), reference_guidance=3.0)
    policy, others = method.policy, [tiny(family, adapter) for _ in range(2)]
    move(policy, 0)
    policy.update_old()
    move(others[0], 0)
    move(policy, 1)
    x_0, t = torch.randn(3, *policy.latent_shape), policy.process.timesteps(5)[2:3].expand(3, 1)
    m = {"x_0": x_0, "t": t, "advantage": T([1.0, 2.0, 3.0]), "cond": policy.condition(["a"])}
    v = method.noised_batch(m | {"row": torch.arange(3), "step": torch.zeros(3, dtype=torch.long)})
    a, s = policy.process.alpha(v.t[0]), policy.process.sigma(v.t[0])
    eps = (v.x_t - a * x_0) / s
    torch.testing.assert_close(v.target, eps - x_0 if family is StableDiffusion3 else eps)
    cond, again = policy.condition(["a"] * 3), lambda p, scale=1.0: p.denoise(v.x_t, v.t, cond, scale).detach()
    torch.testing.assert_close(v.pred.detach(), again(policy))
    torch.testing.assert_close(v.old, again(others[0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(v.ref, again(others[1], 3.0), atol=1e-5, rtol=1e-4)
    assert v.pred.requires_grad and not v.old.requires_grad and not v.ref.requires_grad
    assert not torch.allclose(v.pred, v.old, atol=1e-5) and not torch.allclose(v.ref, again(others[1]), atol=1e-5)


def test_a_sample_is_noised_at_its_own_time_under_its_own_prompt():
    method = alone(CRD)
    policy, seen, denoise = method.policy, [], method.policy.denoise
    policy.denoise = lambda x, t, cond, scale=1.0: seen.append((t, cond["text"])) or denoise(x, t, cond, scale)
    grid = policy.process.timesteps(5)[:4]
    x_0, t = torch.randn(6, *policy.latent_shape), torch.stack([grid.roll(i) for i in range(6)])
    cond = policy.condition(["a", "b"])  # three samples of each
    m = {"x_0": x_0, "t": t, "advantage": torch.arange(6.0), "cond": cond, "row": T([4, 0, 5]), "step": T([1, 3, 0])}
    v = method.noised_batch(m)
    assert v.advantage.tolist() == [4, 0, 5] and torch.equal(v.x_0, x_0[[4, 0, 5]])
    assert torch.equal(v.t, torch.stack([t[4, 1], t[0, 3], t[5, 0]])) and len(seen) == 3
    for at, text in seen:
        assert torch.equal(at, v.t) and torch.equal(text, cond["text"][[1, 0, 1]])


def test_the_old_policy_follows_by_the_schedule(tmp_path):
    method, seen = make(DiffusionNFT, decay=(0.1, 0.2, 0.5, 0)), []
    method.policy.update_old = lambda decay, name: seen.append((decay, name))
    trainer(tmp_path).fit(method, prompts(2, 3))
    assert [d for d, _ in seen] == pytest.approx([0.3, 0.5, 0.5])  # after steps 1, 2 and 3


def test_dgpos_groups_share_their_noise():
    eps = alone(DGPO).noise(torch.zeros(6, 2, 4, 4)).view(2, 3, -1)
    assert (eps == eps[:, :1]).all() and not (eps[0] == eps[1]).any()
    free = alone(CRD).noise(torch.zeros(6, 2, 4, 4))
    assert not (free[0] == free[1]).any()


# DiffusionNFT


def test_nfts_equation_on_numbers():
    method, t, x_0, eps = alone(DiffusionNFT, beta=0.4, kl_weight=0.3), 0.6, 0.2, -0.7
    x_t = (1 - t) * x_0 + t * eps
    for pred, old, ref, advantage in ((-1.0, -0.5, 0.4, 2.0), (0.3, -0.9, -0.8, -4.0)):
        v = noised_batch(method, [pred], [old], [eps - x_0], [advantage], [ref])
        plus, minus = x_t - t * (0.6 * old + 0.4 * pred), x_t - t * (1.4 * old - 0.4 * pred)
        r = advantage / 10 + 0.5
        want = 5 / 0.4 * (r * abs(plus - x_0) + (1 - r) * abs(minus - x_0)) + 0.3 * (pred - ref) ** 2  # d^2 / |d|
        loss = method.loss(v)
        assert loss.item() == pytest.approx(want, rel=1e-5)
        loss.backward()
        slope = r * math.copysign(2, plus - x_0) * -t * 0.4 + (1 - r) * math.copysign(2, minus - x_0) * t * 0.4
        assert v.pred.grad.item() == pytest.approx(5 / 0.4 * slope + 0.6 * (pred - ref), rel=1e-4)


@FAMILIES
def test_nfts_gradient_starts_at_2r_minus_1_times_its_positive_part(family):
    method = alone(DiffusionNFT, tiny(family), kl_weight=0.0)
    move(method.policy, 0)
    method.policy.update_old()
    x_0 = torch.randn(1, *method.policy.latent_shape)
    t = method.policy.process.timesteps(5)[2:3].view(1, 1)
    eps = torch.randn_like(x_0)
    method.noise = lambda x: eps

    def gradient(advantage):
        m = {"x_0": x_0, "t": t, "advantage": T([advantage]), "cond": method.policy.condition(["a"])}
        v = method.noised_batch(m | {"row": T([0]), "step": T([0])})
        assert torch.equal(v.pred.detach(), v.old)
        plus, minus = (method.distance((1 - b) * v.old + b * v.pred, v).item() for b in (1, -1))
        assert plus == minus
        return torch.cat([g.flatten() for g in torch.autograd.grad(method.loss(v), trained(method.policy))])

    top = gradient(5.0)  # r = 1
    assert top.abs().max() > 0
    assert gradient(0.0).abs().max() < 1e-6 * top.abs().max()
    for advantage in (-5.0, -2.0, 1.5):
        torch.testing.assert_close(
            gradient(advantage), advantage / 5 * top, atol=1e-5 * top.abs().max().item(), rtol=1e-3
        )


# AWM


@FAMILIES
def test_awms_ratio_is_one_and_its_gradient_a_times_that_of_the_denoising_loss(family):
    method = alone(AWM, tiny(family), w="plain", beta=0.0, beta_ema=0.0)
    move(method.policy, 0)
    ratios = []
    method.log_mean = lambda name, value, n: ratios.append(value.item()) if name == "train/ratio" else None
    t = method.policy.process.timesteps(5)[T([1, 3])].view(2, 1)
    m = {
        "x_0": torch.randn(2, *method.policy.latent_shape),
        "t": t,
        "advantage": T([-3.0, 2.0]),
        "cond": method.policy.condition(["a"]),
    }
    v = method.noised_batch(m | {"row": torch.arange(2), "step": T([0, 0])})
    assert v.old is None and v.ref is None
    grads = lambda loss: torch.autograd.grad(loss, trained(method.policy), retain_graph=True)
    loss = method.loss(v)
    torch.testing.assert_close(loss.detach(), T([0.6, -0.4]))
    want = grads((T([-0.6, 0.4]) * (v.pred - v.target).square().flatten(1).mean(1)).mean())
    for a, b in zip(grads(loss.mean()), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)
    assert ratios == [1.0] and any(g.any() for g in want)


def test_awms_ghuber_weight_and_its_distances():
    method = alone(AWM, beta=0.3, beta_ema=0.7)
    v = noised_batch(method, [0.9], [0.4], [0.1], [2.5], [-0.2], t=0.6)
    loss = method.loss(v)
    assert loss.item() == pytest.approx(-0.5 + 0.3 * 1.1**2 + 0.7 * 0.5**2, rel=1e-5)
    loss.backward()
    slope = 0.6 * 0.64**-0.75 * 2 * 0.8  # d/dv of t l^p / p, p = 1/4, l = (v - target)^2
    assert v.pred.grad.item() == pytest.approx(0.5 * slope + 0.3 * 2 * 1.1 + 0.7 * 2 * 0.5, rel=1e-4)


def test_awm_off_policy_weighs_by_the_ratio_and_clips_it():
    method = alone(AWM, w="plain", beta=0.0, beta_ema=0.0, clip_range=0.2, off_policy=True, updates=3)
    v = noised_batch(method, [0.5, 0.5, 0.9, 0.9], [0.6, 0.6, 0.1, 0.1], [0.0] * 4, [5.0, -5.0, 5.0, -5.0])
    up, down = math.exp(0.36 - 0.25), math.exp(0.01 - 0.81)
    loss = method.loss(v)
    torch.testing.assert_close(loss.detach(), T([-up, up, -down, 0.8]))
    loss.sum().backward()
    torch.testing.assert_close(v.pred.grad.flatten(), T([up, -up, 2 * 0.9 * down, 0.0]))


def test_awm_on_policy_makes_one_update():
    with pytest.raises(ValueError, match="updates is 2"):
        make(AWM, updates=2)


@pytest.mark.parametrize(
    "cls,others",
    [(DiffusionNFT, ["old"]), (AWM, [None]), (CRD, ["sampling"])],
    ids=lambda c: getattr(c, "__name__", None),
)
def test_who_draws(cls, others):
    method, seen = alone(cls), []
    method.draw_latents = lambda prompts: (
        seen.append(method.policy._active) or torch.zeros(len(prompts), *method.policy.latent_shape)
    )
    method.collect({"prompt": ["a"], "index": [0]})
    assert seen == others * 3


def test_in_dgpo_the_old_policy_draws_from_some_step_on(tmp_path):
    method, seen = make(DGPO, switch=1), []
    draw = method.draw_latents
    method.draw_latents = lambda prompts: seen.append(method.policy._active) or draw(prompts)
    trainer(tmp_path).fit(method, prompts(1, 4))
    assert seen[::3] == [None, None, "old", "old"]  # at optimizer steps 0, 1, 2, 3


# DGPO


def test_dgpos_gradient_is_the_advantages_times_one_weight_per_group():
    method = alone(DGPO, beta=7.0, kl_weight=0.2, clip_range=10.0)
    pred, ref, target = (
        [0.5, 0.1, 0.9, 0.3, -0.4, 0.2],
        [0.2, 0.3, 0.4, 0.9, -0.1, 0.6],
        [0.0, 0.1, 0.2, 0.0, 0.5, -0.5],
    )
    advantage = [1.0, -0.4, -0.6, -2.0, 1.5, 0.5]
    v = noised_batch(method, pred, pred, target, advantage, ref)
    loss = method.loss(v)
    loss.mean().backward()
    for g in range(2):
        rows = range(3 * g, 3 * g + 3)
        gap = sum(advantage[i] * ((pred[i] - target[i]) ** 2 - (ref[i] - target[i]) ** 2) for i in rows) / 3
        weight = 1 / (1 + math.exp(-7 * gap))
        kl = sum((pred[i] - ref[i]) ** 2 for i in rows) / 3
        assert loss[g].item() == pytest.approx(-math.log(1 / (1 + math.exp(7 * gap))) / 7 + 0.2 * kl, rel=1e-5)
        for i in rows:
            want = (weight * advantage[i] * 2 * (pred[i] - target[i]) + 0.2 * 2 * (pred[i] - ref[i])) / 6
            assert v.pred.grad[i].item() == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_dgpo_stops_where_a_sample_has_gone_far_enough():
    method = alone(DGPO, kl_weight=0.0, clip_range=0.05)
    # exp(l_old - l): above, above, below, below, inside, inside; the favourable side has no gradient
    pred, old, advantage = (
        [0.1, 0.1, 0.6, 0.6, 0.5, 0.5],
        [0.5, 0.5, 0.1, 0.1, 0.51, 0.51],
        [1.0, -1.0, 1.0, -1.0, 1.0, -1.0],
    )
    v = noised_batch(method, pred, old, [0.0] * 6, advantage)
    method.loss(v).sum().backward()
    assert [bool(g) for g in v.pred.grad.flatten()] == [False, True, True, False, True, True]


# CRD


def test_crds_equation_on_numbers():
    method = alone(CRD, beta=0.5, kl_weight=0.1, kl_floor=0.01)
    pred, old, target, ref = [0.5, 0.1, 0.9], [0.2, -0.3, 0.4], [0.0, 0.2, 0.3], [0.6, 0.6, 0.0]
    advantage = [2.0, -1.0, 0.0]
    v = noised_batch(method, pred, old, target, advantage, ref)
    implicit = [abs(o - y) - abs(p - y) for p, o, y in zip(pred, old, target)]  # d^2 / |d|
    r = [a / 10 + 0.5 for a in advantage]
    want = []
    for i in range(3):
        gap = 0.5 * (implicit[i] - sum(implicit) / 3) - (r[i] - sum(r) / 3)
        want.append(5 / 0.5 * gap**2 + (0.01 + r[i] * 0.09) * (pred[i] - ref[i]) ** 2)
    torch.testing.assert_close(method.loss(v), T(want), atol=1e-6, rtol=1e-5)


def test_crd_is_at_rest_where_the_implicit_reward_is_the_given_one_up_to_a_prompts_constant():
    method = alone(CRD, beta=2.0, kl_weight=0.0, kl_floor=0.0)
    advantage, constant = T([3.0, -1.0, -2.0, 0.5, 0.5, -1.0]), T([0.7, 0.7, 0.7, 1.1, 1.1, 1.1])
    implicit = (advantage / 10) / 2 + constant  # R_theta = r / beta + a constant of the prompt
    old = (implicit + 0.4).tolist()  # |old| - |pred| = R_theta with the target at 0 and pred at 0.4
    v = noised_batch(method, [0.4] * 6, old, [0.0] * 6, advantage.tolist())
    loss = method.loss(v)
    assert loss.abs().max() < 1e-10
    off = noised_batch(method, [0.4] * 5 + [0.5], old, [0.0] * 6, advantage.tolist())
    assert (method.loss(off) > 1e-4).tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize("cls", [DGPO, CRD], ids=lambda c: c.__name__)
def test_a_group_has_several_samples(cls):
    with pytest.raises(ValueError, match="samples_per_prompt to 2 or more"):
        make(cls, samples_per_prompt=1)


# Training


@pytest.mark.parametrize(
    "family,adapter", [(StableDiffusion, Full()), (StableDiffusion3, LoRA(rank=2))], ids=["sd-full", "sd3-lora"]
)
@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
def test_a_step_moves_what_is_trained_and_drags_the_old_policy_along(tmp_path, cls, family, adapter):
    extra = {"sampling_decay": (0.4, 0.0, 0.4, 0)} if cls is CRD else {}
    method = make(cls, tiny(family, adapter), decay=(0.25, 0.0, 0.25, 0), **extra)
    policy = method.policy
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    frozen = [p.detach().clone() for part in (policy.pipe.vae, policy.pipe.text_encoder) for p in part.parameters()]
    t = trainer(tmp_path)
    t.fit(method, prompts())
    assert t.global_step == 1 and math.isfinite(t.callback_metrics["train/loss"])
    after = dict(policy.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    learnt = {n for n, p in after.items() if p.requires_grad}
    assert moved and moved <= learnt
    assert all(
        torch.equal(a, b)
        for a, b in zip(frozen, (p for part in (policy.pipe.vae, policy.pipe.text_encoder) for p in part.parameters()))
    )
    for name, decay in {"old": 0.25, "sampling": 0.4}.items() if cls is CRD else {"old": 0.25}.items():
        for n in moved:
            kept = (
                n.replace(".default.", f".{name}.")
                if isinstance(adapter, LoRA)
                else n.replace("denoiser.", f"_frozen.{name}.")
            )
            torch.testing.assert_close(after[kept], decay * before[n] + (1 - decay) * after[n])


def test_sdxl_learns_too(tmp_path):
    method = make(DiffusionNFT, tiny(StableDiffusionXL))
    before = [p.detach().clone() for p in trained(method.policy)]
    trainer(tmp_path).fit(method, prompts())
    assert any(not torch.equal(a, b) for a, b in zip(before, trained(method.policy)))


@pytest.mark.parametrize("cls,adapter", [(CRD, LoRA(rank=2)), (DiffusionNFT, Full())], ids=["CRD-lora", "NFT-full"])
def test_old_policies_survive_a_checkpoint_and_are_left_out_of_a_test(tmp_path, cls, adapter):
    def make_again():
        L.seed_everything(3, verbose=False)
        return make(cls, tiny(StableDiffusion, adapter), steps=2, decay=(0.5, 0.0, 0.5, 0), optimizer=lambda p: torch.optim.SGD(p, lr=1e-2),
                    sampler=Sampler(2, 1.0), rewards=[Darkness()])  # fmt: skip

    whole = make_again()
    trainer(tmp_path, max_steps=4, max_epochs=-1).fit(whole, prompts(2, 4))
    half = make_again()
    t = trainer(tmp_path, max_steps=2, max_epochs=-1)
    t.fit(half, prompts(2, 4))
    t.save_checkpoint(tmp_path / "half.ckpt")
    rest = make_again()
    trainer(tmp_path, max_steps=4, max_epochs=-1).fit(rest, prompts(2, 2), ckpt_path=tmp_path / "half.ckpt")
    a, b = whole.state_dict(), rest.state_dict()
    assert a.keys() == b.keys() and any(".old." in k for k in a) and any(".sampling." in k for k in a) == (cls is CRD)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)
    old = next(k for k in a if ".old." in k and "lora_A" not in k)
    assert not torch.equal(a[old], a[old.replace(".old.", ".default.").replace("_frozen.default.", "denoiser.")])
    tested, batch = make_again(), {"prompt": ["a"], "index": [0]}
    base, found, baseline = tested.sample(batch)["image"], [], tested.baseline
    tested.baseline = lambda batch: found.append(baseline(batch)) or found[-1]
    trainer(tmp_path).test(
        tested, torch.utils.data.DataLoader([batch], batch_size=None), ckpt_path=tmp_path / "half.ckpt"
    )
    torch.testing.assert_close(found[0]["image"], base)
    tuned = half.state_dict()
    assert all(torch.equal(v, tuned[k]) for k, v in tested.state_dict().items())
