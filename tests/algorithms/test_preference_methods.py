"""The equations of the preference methods, against values computed by hand or by another route."""

import itertools
import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from lit_align.algorithms.preference.capo import CaPO, calibrated, front
from lit_align.algorithms.preference.cdpo import CDPO
from lit_align.algorithms.preference.dde import DDE
from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.dpo_kernels import DPOKernels
from lit_align.algorithms.preference.dspo import DSPO
from lit_align.algorithms.preference.fdpo import FDPO
from lit_align.algorithms.preference.flow_dpo import FlowDPO
from lit_align.algorithms.preference.gpo import GPO
from lit_align.algorithms.preference.inpo import InPO
from lit_align.algorithms.preference.ipo import DiffusionIPO
from lit_align.algorithms.preference.kto import DiffusionKTO
from lit_align.algorithms.preference.linear_dpo import LinearDPO
from lit_align.algorithms.preference.lipo import LiPO
from lit_align.algorithms.preference.mapo import MaPO
from lit_align.algorithms.preference.npo import DiffusionNPO
from lit_align.algorithms.preference.orpo import DiffusionORPO
from lit_align.algorithms.preference.pl_dpo import PlackettLuceDPO
from lit_align.algorithms.preference.preference import Errors, safeguarded
from lit_align.algorithms.preference.pro import PRO
from lit_align.algorithms.preference.rankdpo import RankDPO
from lit_align.algorithms.preference.ranking import Ranked, lambdas, ranks
from lit_align.algorithms.preference.rdpo import RDPO
from lit_align.algorithms.preference.rrhf import RRHF
from lit_align.algorithms.preference.simpo import DiffusionSimPO
from lit_align.algorithms.preference.smpo import SmPO
from lit_align.policies.adapters import LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.reward import Reward

T = torch.tensor
FAMILIES = [StableDiffusion, StableDiffusionXL, StableDiffusion3]


class Brightness(Reward):
    name = "brightness"

    def forward(self, images, prompts):
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def policy():
    return StableDiffusion("tiny", LoRA(rank=2))


def pair(win=0.10, lose=0.12, ref_win=0.101, ref_lose=0.119, **kwargs):
    """The fact sheet's fixed inputs: h_w = .001, h_l = -.001, D = .002."""
    return Errors(*(T([x], dtype=torch.float64) for x in (win, lose, ref_win, ref_lose)), **kwargs)


def at(x):
    """Errors whose gap is x."""
    return pair(0.0, x, 0.0, 0.0)


def logs(u_w, u_l):
    """Errors whose log-ratios, at beta 1, are u_w and u_l."""
    return pair(0.0, 0.0, u_w, u_l)


# x = 1, and the fact sheet's pair; each number by hand from the method's formula
@pytest.mark.parametrize("method,e,expected", [
    (lambda p: DiffusionIPO(policy=p, beta=1.0), at(1.0), 0.0),
    (lambda p: DiffusionIPO(policy=p, beta=1.0), at(0.0), 1.0),
    (lambda p: CDPO(policy=p, beta=1.0, flip_rate=0.1), at(1.0), 0.41326169),
    (lambda p: RDPO(policy=p, beta=1.0, flip_rate=0.1), at(1.0), 0.18826169),
    (lambda p: GPO(policy=p, beta=1.0, f="logistic"), at(1.0), 0.31326169),
    (lambda p: GPO(policy=p, beta=1.0, f="hinge"), at(0.0), 1.0),
    (lambda p: GPO(policy=p, beta=1.0, f="hinge"), at(1.0), 0.0),
    (lambda p: GPO(policy=p, beta=1.0, f="square"), at(3.0), 4.0),
    (lambda p: GPO(policy=p, beta=1.0, f="exponential"), at(1.0), 0.36787944),
    (lambda p: GPO(policy=p, beta=1.0, f="truncated_square"), at(-1.0), 4.0),
    (lambda p: GPO(policy=p, beta=1.0, f="truncated_square"), at(2.0), 0.0),
    (lambda p: FDPO(policy=p, beta=1.0, divergence="forward_kl"), logs(0.6, -0.4), 0.32890987),
    (lambda p: FDPO(policy=p, beta=1.0, divergence="js"), logs(0.6, -0.4), 0.48338694),
    (lambda p: FDPO(policy=p, beta=1.0, divergence="alpha", alpha=0.5), logs(0.6, -0.4), 0.32385404),
    (lambda p: FDPO(policy=p, beta=1.0, divergence="reverse_kl"), logs(0.6, -0.4), 0.31326169),
    (lambda p: DiffusionORPO(policy=p, weight=0.1, kappa=1.0), pair(), 0.16831972),
    (lambda p: MaPO(policy=p), pair(), 0.10073576),
    (lambda p: MaPO(policy=p), pair(0.3, 0.3), 0.3 + 0.1 * math.log(2)),
    (lambda p: LinearDPO(policy=p, beta=100.0), pair(), -0.006),  # the paper's beta 500
    (lambda p: LinearDPO(policy=p, beta=1000.0, eta=1e-3), pair(), -0.00002),  # clipped at eta
    (lambda p: LinearDPO(policy=p, beta=1000.0), pair(0.2, 0.5, 0.2, 0.5), -0.15),  # 0.5 (L_w - L_l) at the start
    (lambda p: DiffusionSimPO(policy=p, beta=100.0, gamma=0.5), pair(), math.log1p(math.exp(-1.5))),
    (lambda p: DiffusionNPO(policy=p, beta=1.0), at(1.0), 1.31326169),
])  # fmt: skip
def test_given_errors(policy, method, e, expected):
    assert method(policy).loss(e).item() == pytest.approx(expected, abs=1e-8)


def test_mapos_score_falls_from_one_and_is_smooth_at_zero(policy):
    f = MaPO(policy=policy).score
    assert f(T(0.0)).item() == 1.0
    x = torch.cat([torch.linspace(0, 0.01, 50, dtype=torch.float64), torch.logspace(-2, 1.5, 200, dtype=torch.float64)])
    y = f(x)
    assert (y.diff() <= 0).all() and y.isfinite().all()
    torch.testing.assert_close(f(T([0.10, 0.12], dtype=torch.float64)), T([0.97520832, 0.97029998], dtype=torch.float64), atol=1e-8, rtol=0)
    (slope,) = torch.autograd.grad(f(z := T(0.1, dtype=torch.float64, requires_grad=True)), z)
    assert slope.item() == pytest.approx(-0.2458, abs=1e-4)


def test_label_smoothing_has_its_minimum_at_the_log_odds(policy):
    x = torch.linspace(-1, 5, 60001, dtype=torch.float64)
    loss = CDPO(policy=policy, beta=1.0, flip_rate=0.1).loss(Errors(torch.zeros_like(x), x, torch.zeros_like(x), torch.zeros_like(x)))
    assert x[loss.argmin()].item() == pytest.approx(math.log(9), abs=1e-3)


def test_robust_dpo_is_unbiased_under_flips(policy):
    """E over flips of the robust loss is the clean DPO loss."""
    robust, dpo = RDPO(policy=policy, beta=1.0, flip_rate=0.2), DiffusionDPO(policy=policy, beta=1.0)
    for x in (-2.0, 0.3, 1.7):
        assert 0.8 * robust.loss(at(x)).item() + 0.2 * robust.loss(at(-x)).item() == pytest.approx(dpo.loss(at(x)).item(), abs=1e-12)


@pytest.mark.parametrize("rate", [-0.1, 0.5])
def test_a_flip_rate_that_means_nothing_is_refused(policy, rate):
    with pytest.raises(ValueError, match="flip_rate"):
        CDPO(policy=policy, flip_rate=rate)


def test_alpha_divergence_runs_from_forward_to_reverse_kl(policy):
    e = logs(0.6, -0.4)
    near = lambda alpha: FDPO(policy=policy, beta=1.0, divergence="alpha", alpha=alpha).loss(e).item()
    assert near(1e-6) == pytest.approx(0.32890987, abs=1e-5) and near(1 - 1e-5) == pytest.approx(0.31326169, abs=1e-4)


def vectors(g_w, g_l):
    """Errors whose gradients in the predictions are g_w and g_l."""
    prediction = torch.zeros(2, len(g_w), requires_grad=True)
    errors = (prediction * T([g_w, g_l])).sum(1)
    return Errors(errors[:1], errors[1:], T([0.0]), T([0.0]), prediction=prediction)


@pytest.mark.parametrize("g_l,expected", [((2.0, 1.0), 0.05), ((-2.0, 1.0), 1.0), ((0.05, 1.0), 1.0)])
def test_safeguard_scales_the_losers_gradient(g_l, expected):
    e = safeguarded(vectors((1.0, 0.0), g_l), mu=0.9)
    (g,) = torch.autograd.grad(e.lose.sum(), e.prediction)
    torch.testing.assert_close(g[1], expected * T(g_l))
    assert e.lose.item() == 0.0


def test_a_safeguarded_step_never_raises_the_winners_error():
    """Both images' predictions move alike (a shared parameter): g = s (g_w - lambda g_l), <g, g_w> > 0."""
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        g_w, g_l = torch.randn(2, 5, generator=g)
        e = safeguarded(vectors(g_w.tolist(), (3 * g_l + 2 * g_w).tolist()), mu=0.3)
        grads = torch.autograd.grad((e.win - e.lose).sum(), e.prediction)[0]
        assert (grads.sum(0) @ g_w).item() >= 0.3 * g_w.square().sum().item() - 1e-4


def attached(method):
    method.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    method.trainer.training = True
    method.log = lambda *args, **kwargs: None
    method.all_gather = lambda x: x
    return method


def batch(policy, n=3, seed=0, **more):
    g = torch.Generator().manual_seed(seed)
    r = policy.resolution
    images = torch.rand(2, n, 3, r, r, generator=g)
    data = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "win": images[0], "lose": images[1]}
    data |= {"image": images[0], "label": T([1.0, 0.0, 1.0][:n])}
    data |= {"images": torch.rand(n, 4, 3, r, r, generator=g), "scores": torch.randint(3, (n, 4, 2), generator=g).float()}
    return data | more


def build(cls, policy, **kwargs):
    return cls(policy=policy, **({"reward": Brightness()} if cls is SmPO else {}), **kwargs)


LN2 = math.log(2)
# the loss where policy and reference agree (fact sheet 8.2); None where it depends on the images
STARTS = {
    DiffusionDPO: LN2, DiffusionIPO: 1.0, CDPO: LN2, RDPO: LN2, FDPO: LN2, DPOKernels: LN2, GPO: 1.0, DDE: LN2, InPO: LN2, SmPO: LN2,
    DiffusionNPO: LN2, DiffusionKTO: 0.5, FlowDPO: LN2, DiffusionORPO: None, DiffusionSimPO: None, MaPO: None, LinearDPO: None, DSPO: None,
    PlackettLuceDPO: None, PRO: None, RRHF: None, LiPO: None, RankDPO: None, CaPO: None,
}  # fmt: skip
METHODS = list(STARTS)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
def test_first_step_on_every_policy(cls, family):
    """The loss starts where it should, reaches every trained tensor (LoRA's B; A starts with zero gradient), and no other."""
    policy = family("tiny", LoRA(rank=2))
    if cls is FlowDPO and family is not StableDiffusion3:
        with pytest.raises(ValueError, match="velocities"):
            build(cls, policy)
        return
    method = attached(build(cls, policy))
    torch.manual_seed(0)
    loss = method.batch_loss(batch(policy))
    if STARTS[cls] is not None:
        assert loss.item() == pytest.approx(STARTS[cls], abs=1e-5)
    loss.backward()
    got = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in got.values())
    assert all(g.abs().sum() > 0 for n, g in got.items() if "lora_B" in n)


@pytest.mark.parametrize("utility,start", [("kahneman_tversky", 0.5), ("loss_averse", 1 + LN2), ("risk_seeking", 1 - LN2)])
def test_ktos_utilities_start_where_the_formula_says(policy, utility, start):
    kto = DiffusionKTO(policy=policy, utility=utility)
    assert kto.loss(torch.zeros(2), T([True, False]), T(0.0)).tolist() == pytest.approx([start, start], abs=1e-6)


def test_kto_on_given_errors(policy):
    kto = DiffusionKTO(policy=policy, beta=5000.0)
    h, good = T([4e-4, -4e-4, 4e-4], dtype=torch.float64), T([True, True, False])
    torch.testing.assert_close(kto.loss(h, good, T(0.0)), T([0.11920292, 0.88079708, 0.88079708], dtype=torch.float64), atol=1e-7, rtol=0)


def test_ktos_reference_point_is_the_mean_over_all_ranks_at_least_zero_and_constant(policy):
    kto, seen = attached(DiffusionKTO(policy=policy)), {}
    other = T([0.3, 0.1, -0.1])
    kto.all_gather = lambda h: torch.stack([h, other])
    kto.log = lambda name, value, **kwargs: seen.setdefault(name, value)
    kto.batch_loss(batch(policy))  # own h is 0 at the start
    assert seen["train/z"].item() == pytest.approx(0.05) and not seen["train/z"].requires_grad
    kto.all_gather = lambda h: torch.stack([h, -other])
    seen.clear()
    kto.batch_loss(batch(policy))
    assert seen["train/z"].item() == 0.0


def moved(policy, scale=0.1):
    g = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        if p.requires_grad:
            p.data += scale * torch.randn(p.shape, generator=g)
    return policy


def test_the_rbf_kernel_is_diffusion_dpo():
    policy = moved(StableDiffusion("tiny", LoRA(rank=2)))
    kernels, dpo = (attached(c) for c in (DPOKernels(policy=policy, beta=30.0, kernel="rbf"), DiffusionDPO(policy=policy, beta=30.0)))
    data = batch(policy)
    losses = []
    for method in (kernels, dpo):
        torch.manual_seed(2)
        losses.append(method.batch_loss(data).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and losses[0] != pytest.approx(LN2, abs=1e-4)


def test_other_kernels_written_out():
    policy = moved(StableDiffusion("tiny", LoRA(rank=2)))
    p, e, r = torch.randn(3, 4, 2, 3, 3)
    errors = Errors(*torch.zeros(4, 2), prediction=p, target=e, reference=r)
    got = DPOKernels(policy=policy, beta=2.0, kernel="polynomial", degree=3, divergence="js").loss(errors)
    log_k = lambda a: 3 * math.log(1 + max(-0.99, sum((x * y).item() for x, y in zip(a[0].flatten(), a[1].flatten())) / 18))
    u = [2 * (log_k((p[i], e[i])) - log_k((r[i], e[i]))) for i in range(4)]
    ls = lambda x: -math.log1p(math.exp(-x))
    assert got.tolist() == pytest.approx([-ls(ls(u[i]) - ls(u[i + 2])) for i in range(2)], abs=1e-5)
    got = DPOKernels(policy=policy, beta=2.0, kernel="mahalanobis").loss(errors)
    var = ((r - e) ** 2).mean(0)
    d = lambda a: ((a - e) ** 2 / var * var.mean()).mean((1, 2, 3))
    u = 2 * (d(r) - d(p))
    torch.testing.assert_close(got, -F.logsigmoid(u[:2] - u[2:]))


def test_dspo_written_out():
    policy = moved(StableDiffusion("tiny", LoRA(rank=2)))
    dspo = attached(DSPO(policy=policy, beta=3.0, weight=0.4))
    torch.manual_seed(5)
    e = dspo.errors(batch(policy))
    w = 1 - torch.sigmoid(3.0 * ((e.ref_win - e.win) - (e.ref_lose - e.lose)))
    target = e.target[:3]
    inside = (e.prediction[:3] - target) - 0.4 * w.view(3, 1, 1, 1) * (e.prediction[:3] - e.reference[:3])
    torch.testing.assert_close(dspo.loss(e), inside.pow(2).mean((1, 2, 3)))
    assert not e.reference.requires_grad


def test_flow_dpo_in_velocities_is_dpo_in_noise_when_time_dependent():
    """||eps err||^2 = (1 - t)^2 ||v err||^2 (fact sheet 2.5), so beta (1 - t)^2 on velocities is beta on noise."""
    policy = moved(StableDiffusion3("tiny", LoRA(rank=2)))
    flow = attached(FlowDPO(policy=policy, beta=20.0, time_dependent=True))
    torch.manual_seed(6)
    e = flow.errors(batch(policy))
    x_0, t = torch.randn_like(e.target), torch.cat([e.t, e.t])
    eps = e.target + x_0  # v = eps - x_0
    x_t = policy.process.add_noise(x_0, eps, t)
    in_noise = lambda v: (policy.process.to_eps(v, x_t, t) - eps).square().mean((1, 2, 3))
    error, ref = in_noise(e.prediction), in_noise(e.reference)
    d = (ref - error)[:3] - (ref - error)[3:]
    torch.testing.assert_close(flow.loss(e), -F.logsigmoid(20.0 * d), atol=1e-4, rtol=1e-3)
    constant = FlowDPO(policy=policy, beta=20.0)
    torch.testing.assert_close(constant.loss(e), DiffusionDPO(policy=policy, beta=20.0).loss(e))


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_ddes_weight_is_unimodal_vanishes_at_both_ends_and_has_mean_one(family):
    dde = DDE(policy=family("tiny"))
    process = dde.policy.process
    t = process.timesteps(process.num_train_timesteps)[:-1]
    w = dde.weight(t)
    peak = int(w.argmax())
    assert w.mean().item() == pytest.approx(1, abs=1e-4) and w[0] < 0.1 and w[-1] < 0.1
    assert 0.2 < peak / len(w) < 0.8 and (w[: peak + 1].diff() >= -1e-6).all() and (w[peak:].diff() <= 1e-6).all()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
def test_inversion_of_a_mixed_batch_is_each_images_own(family):
    policy = moved(family("tiny", LoRA(rank=2)))
    inpo = InPO(policy=policy, eta=0.0, inversion_steps=4)
    x_0, cond = torch.randn(6, *policy.latent_shape), policy.condition([f"p{i}" for i in range(6)])
    torch.manual_seed(3)
    t, eps = inpo.noise(x_0, cond)
    assert torch.equal(t[:3], t[3:]) and len(set(t.tolist())) > 1
    x_t = policy.process.add_noise(x_0, eps, t)
    grid = policy.process.timesteps(4).flip(0)
    for row in range(6):
        x, one = x_0[row : row + 1], {k: v[row : row + 1] for k, v in cond.items()}
        for s, u in itertools.pairwise(grid[: grid.tolist().index(t[row].item()) + 1].tolist()):
            s_, u_ = T([s]), T([u])
            with torch.no_grad():
                e = policy.process.to_eps(policy.denoise(x, s_.clamp(min=0), one), x, s_)
            a, b = (lambda v: (policy.process.alpha(v), policy.process.sigma(v)))(s_), (policy.process.alpha(u_), policy.process.sigma(u_))
            x = b[0] * (x - a[1] * e) / a[0] + b[1] * e
        torch.testing.assert_close(x_t[row : row + 1], x, atol=2e-4, rtol=1e-3)


def test_smooth_labels_shrink_close_pairs(policy):
    smpo = build(SmPO, policy, beta=1.0)
    bright = lambda *values: torch.stack([torch.full(policy.latent_shape, v) for v in values])
    smpo.policy.decode, keep = lambda z: z[:, :3], smpo.policy.decode
    try:
        data = {"prompt": ["a", "b"], "index": [0, 1], "win_latents": bright(1.0, 0.5), "lose_latents": bright(0.0, 0.4)}
        p = smpo.label(data)
        assert p.tolist() == pytest.approx([1 / (1 + math.exp(-10)), 1 / (1 + math.exp(-1))], abs=1e-5)
        e = Errors(*(T([x, x]) for x in (0.0, 0.3, 0.0, 0.0)), batch=data)
        torch.testing.assert_close(smpo.loss(e), -F.logsigmoid((2 * p - 1) * 0.3))
    finally:
        smpo.policy.decode = keep


def test_npo_samples_with_the_reference_as_positive_and_the_policy_as_negative_branch():
    policy = moved(StableDiffusion("tiny", LoRA(rank=2)), 0.3)
    npo = attached(build(DiffusionNPO, policy))
    npo.sampler.steps, npo.sampler.guidance_scale = 1, 3.0
    data = {"prompt": ["a", "b"], "index": [0, 1]}
    x = torch.stack([torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1)])
    t = policy.process.timesteps(1)
    with torch.no_grad():
        neg = policy.denoise(x, t[:1].expand(2), policy.null(2))
        with policy.reference():
            pos = policy.denoise(x, t[:1].expand(2), policy.condition(data["prompt"]))
            plain = npo.draw(data).x
    eps = neg + 3.0 * (pos - neg)
    x_0 = policy.process.to_x0(eps, x, t[:1].expand(2))
    a, s = policy.process.coefficients(t[1:].expand(2), x)
    with torch.no_grad():
        got = npo.draw(data).x
    torch.testing.assert_close(got, a * x_0 + s * eps, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(got, plain, atol=1e-3)  # the baseline is sampled without the negative policy


# Rankings


def ranked(h, scores, t=None):
    """A list whose improvements are h (float64), without a reference where that suits: error = -h."""
    h = T([h], dtype=torch.float64)
    scores = T([scores], dtype=torch.float64)
    scores = scores[..., None] if scores.ndim == 2 else scores
    return Ranked(-h, torch.zeros_like(h), scores, torch.tensor([500]) if t is None else t)


def test_plackett_luce_on_given_scores(policy):
    pl = PlackettLuceDPO(policy=policy, beta=1.0)
    assert pl.loss(ranked([1, 0.3, -0.2], [3, 2, 1])).item() == pytest.approx(1.06062929, abs=1e-8)
    assert pl.loss(ranked([0.3, -0.2, 1], [2, 1, 3])).item() == pytest.approx(1.06062929, abs=1e-8)  # in any order
    assert pl.loss(ranked([1, 0.3], [1, 0])).item() == pytest.approx(0.40318605, abs=1e-8)  # Bradley-Terry at .7
    assert pl.loss(ranked([0.0] * 5, [5, 4, 3, 2, 1])).item() == pytest.approx(math.log(120), abs=1e-8)  # log k!


def test_plackett_luce_is_the_probability_of_drawing_in_that_order(policy):
    """Exponential races: item k's clock rings at rate exp(a_k); the chance of the observed order, by simulation."""
    a = T([0.5, -0.3, 0.2, 0.0])
    g = torch.Generator().manual_seed(0)
    clocks = -torch.rand(400_000, 4, generator=g).log() / a.exp()
    loss = PlackettLuceDPO(policy=policy, beta=1.0).loss(ranked(a.tolist(), [2, 0, 3, 1]))
    order = T([2.0, 0.0, 3.0, 1.0]).argsort(descending=True)
    share = (clocks.argsort(1) == order).all(1).float().mean().item()
    assert math.exp(-loss.item()) == pytest.approx(share, abs=0.003)


def test_tied_images_do_not_compete(policy):
    pl = PlackettLuceDPO(policy=policy, beta=1.0)
    tied = pl.loss(ranked([0.7, -0.1, 0.4], [1, 1, 0])).item()
    assert tied == pytest.approx(sum(math.log1p(math.exp(-(a - 0.4))) for a in (0.7, -0.1)), abs=1e-8)
    for method in (pl, LiPO(policy=policy), RankDPO(policy=policy)):
        assert method.loss(ranked([0.7, -0.1, 0.4], [1, 1, 1])).item() == 0


def test_pro_and_rrhf_written_out(policy):
    r = ranked([-0.3, -0.1, -0.2], [1, 3, 2])  # errors .3, .1, .2
    chain = -math.log(math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-3))) - math.log(math.exp(-2) / (math.exp(-2) + math.exp(-3)))
    assert PRO(policy=policy, kappa=10.0, sft_weight=0.5).loss(r).item() == pytest.approx(chain + 0.5 * 0.1, abs=1e-8)
    r = ranked([-0.1, -0.3, -0.2], [1, 3, 2])  # the best has the largest error
    wrong = (0.3 - 0.1) + (0.3 - 0.2) + (0.2 - 0.1)
    assert RRHF(policy=policy, kappa=2.0, sft_weight=0.5).loss(r).item() == pytest.approx(2 * wrong + 0.5 * 0.3, abs=1e-8)
    assert RRHF(policy=policy).loss(ranked([-0.1, -0.2, -0.3], [3, 2, 1])).item() == pytest.approx(0.1, abs=1e-8)


def test_rankdpo_weights(policy):
    phi = T([[0.9, 0.6, 0.35, 0.15]], dtype=torch.float64)
    delta = lambdas(2**phi - 1, ranks(phi))[0]
    expected = {(0, 1): 0.18655, (0, 2): 0.42668, (0, 3): 0.62136, (1, 2): 0.04555, (1, 3): 0.11734, (2, 3): 0.01650}
    for (i, j), value in expected.items():
        assert delta[i, j].item() == pytest.approx(value, abs=1e-5)
    assert math.log(2) * sum(delta[i, j].item() for i, j in expected) == pytest.approx(0.98009, abs=1e-5)


def test_rankdpos_phi_counts_wins_over_rewards_ties_half(policy):
    scores = T([[[1.0, 0.0], [0.0, 0.0], [2.0, -1.0]]])  # (1, 3, 2)
    assert RankDPO(policy=policy).phi(scores)[0].tolist() == pytest.approx([(1 + 1.5) / 4, (0 + 1.5) / 4, (2 + 0) / 4])


def test_rankdpo_of_two_is_gain_weighted_dpo(policy):
    r = ranked([0.2, -0.1], [1.0, 0.0])
    weight = (2**1 - 1) * (1 / math.log(2) - 1 / math.log(3))
    assert RankDPO(policy=policy, beta=2.0).loss(r).item() == pytest.approx(weight * math.log1p(math.exp(-0.6)), abs=1e-8)


def test_lipo_ranks_by_the_policy_and_weighs_without_gradient(policy):
    r = ranked([0.1, 0.4, -0.2], [2.0, 0.0, 1.0])  # the policy's order: 1, 0, 2
    rank, u, y = [2, 1, 3], [0.3, 1.2, -0.6], [2, 0, 1]
    expected = sum(
        abs(2 ** y[i] - 2 ** y[j]) * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j])) * math.log1p(math.exp(-(u[i] - u[j])))
        for i, j in ((0, 1), (0, 2), (2, 1))
    )
    assert LiPO(policy=policy, beta=3.0).loss(r).item() == pytest.approx(expected, abs=1e-6)


def test_capo_on_given_rewards(policy):
    assert calibrated(T([[[2.0], [1.0], [0.0]]])).flatten().tolist() == pytest.approx([0.80592783, 0.5, 0.19407217], abs=1e-7)
    capo = CaPO(policy=policy)
    assert capo.loss(ranked([0.0, 0.0, 0.0], [2, 1, 0])).item() == pytest.approx(0.37436734, abs=1e-6)
    alike = capo.loss(ranked([0.3, 0.3, 0.3], [1, 1, 1]))
    assert alike.item() == 0


def test_capos_fronts_are_the_undominated(policy):
    scores = T([[[3.0, 1.0], [1.0, 3.0], [2.0, 0.5], [0.0, 0.0], [0.0, 0.0]]])
    assert front(scores)[0].tolist() == [True, True, False, False, False]
    assert front(-scores)[0].tolist() == [False, False, False, True, True]


def test_capo_moves_the_gap_to_its_target(policy):
    """The weight w(t) = sigmoid(b - log SNR), by hand at one t."""
    capo, t = CaPO(policy=policy, beta=2.0, bias=1.5), torch.tensor([300])
    a, s = policy.process.alpha(t).item(), policy.process.sigma(t).item()
    w = 1 / (1 + math.exp(-(1.5 - 2 * math.log(a / s))))
    got = capo.loss(ranked([0.4, 0.1], [1.0, 0.0], t)).item()
    ca = 1 / (1 + math.exp(-1))
    assert got == pytest.approx(((ca - (1 - ca)) - 2.0 * w * 0.3) ** 2, abs=1e-5)


@pytest.mark.parametrize("cls", [PlackettLuceDPO, LiPO, RankDPO, CaPO, PRO, RRHF], ids=lambda c: c.__name__)
def test_each_list_shares_a_timestep_and_every_image_has_its_noise(cls):
    method, seen = attached(build(cls, StableDiffusion("tiny", LoRA(rank=2)))), {}
    denoise = method.policy.denoise
    method.policy.denoise = lambda x_t, t, cond, *args: seen.setdefault("t", t) is None or denoise(x_t, t, cond, *args)
    method.batch_loss(batch(method.policy))
    t = seen["t"].view(3, 4)
    assert (t == t[:, :1]).all() and len(set(t[:, 0].tolist())) > 1
