"""What pairs give a loss: denoising errors, the safeguard, and what a run refuses."""

from functools import partial

import lightning as L
import pytest
import torch
from parts import T, move, sgd, spy, tiny, trainer
from preferences import Brightness, attached, batch, still

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.dpo_kernels import DPOKernels
from lit_align.algorithms.preference.npo import DiffusionNPO
from lit_align.algorithms.preference.offline_pso import OfflinePSO
from lit_align.algorithms.preference.preference import Errors, safeguarded
from lit_align.algorithms.preference.sft import SFT
from lit_align.algorithms.preference.smpo import SmPO
from lit_align.algorithms.preference.spin import SPINDiffusion
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

FAMILIES = [StableDiffusion, StableDiffusionXL, StableDiffusion3]


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None, generator=torch.Generator())


def test_errors_are_the_papers_written_out():
    """An independent computation: each image by itself, noise and timestep shared within the pair, reference by hand."""
    dpo = attached(DiffusionDPO(policy=still(scale=0.1)))
    data = batch(dpo.policy)
    x = {k: torch.randn(3, *dpo.policy.latent_shape) for k in ("win", "lose")}
    data |= {"win_latents": x["win"], "lose_latents": x["lose"], "cond": dpo.policy.condition(data["prompt"])}
    torch.manual_seed(9)
    e = dpo.errors(data)
    torch.manual_seed(9)
    torch.rand(3)  # whether captions are dropped
    t, eps = torch.randint(1000, (3,)), torch.randn_like(x["win"])
    unet, abar = dpo.policy.denoiser, torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    for name in ("win", "lose"):
        a = abar[t].view(-1, 1, 1, 1)
        x_t = (a.sqrt() * x[name] + (1 - a).sqrt() * eps).float()
        error = lambda: (unet(x_t, t, data["cond"]["text"]).sample - eps).square().mean((1, 2, 3))
        torch.testing.assert_close(getattr(e, name), error(), rtol=1e-3, atol=1e-5)
        unet.disable_adapters()
        torch.testing.assert_close(getattr(e, f"ref_{name}"), error(), rtol=1e-3, atol=1e-5)
        unet.enable_adapters()


def test_identical_images_have_no_gap():
    dpo = attached(DiffusionDPO(policy=still(scale=0.1)))
    x = torch.randn(3, *dpo.policy.latent_shape)
    data = batch(dpo.policy) | {"win_latents": x, "lose_latents": x}
    torch.testing.assert_close(dpo.errors(data).gap, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
def test_one_step_moves_what_is_trained_and_nothing_else(tmp_path, family, adapter):
    dpo = DiffusionDPO(policy=family("tiny", adapter), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    policy = dpo.policy
    everything = {f"{name}.{k}": v for name, part in policy.pipe.components.items() if isinstance(part, torch.nn.Module) for k, v in part.named_parameters()}
    before = {k: v.detach().clone() for k, v in everything.items()}
    trainer(tmp_path).fit(dpo, loader([batch(policy)]))
    trained = {id(p) for p in policy.denoiser.parameters() if p.requires_grad}
    moved = {k for k, v in everything.items() if not torch.equal(v, before[k])}
    assert moved and all(id(everything[k]) in trained for k in moved)
    if isinstance(adapter, Full):
        start = [v for k, v in before.items() if k.startswith(policy.denoiser_name)]
        assert all(torch.equal(a, b) for a, b in zip(start, policy._frozen.parameters()))


def test_the_wrong_feedback_is_named(tmp_path):
    dpo = DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2)))
    with pytest.raises(TypeError, match="DiffusionDPO learns from win, lose; .* gave prompt, index"):
        trainer(tmp_path).fit(dpo, loader([{"prompt": ["x"], "index": [0]}]))


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(tmp_path):
    dpo = DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2)))
    good = batch(dpo.policy)
    bad = good | {"index": [41, 42, 43], "win": good["win"] * float("nan")}
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 2 on \[41, 42, 43\]"):
        trainer(tmp_path, max_epochs=None, max_steps=5).fit(dpo, loader([good, good, bad]))


def test_dropped_captions_are_the_empty_one(tmp_path):
    dpo = attached(DiffusionDPO(policy=still(), caption_dropout=0.5))
    data = {"prompt": [f"p{i}" for i in range(40)]}
    cond, empty, full = dpo.cond(data), dpo.policy.condition([""] * 40), dpo.policy.condition(data["prompt"])
    same = lambda a, b: [torch.allclose(x, y, atol=1e-5) for x, y in zip(a["text"], b["text"])]
    dropped, kept = same(cond, empty), same(cond, full)
    assert all(d != k for d, k in zip(dropped, kept)) and 8 < sum(dropped) < 32
    cached = dpo.cond(data | {"cond": full})
    assert all(a or b for a, b in zip(same(cached, empty), same(cached, full)))
    dpo.trainer.training = False
    assert all(same(dpo.cond(data), full))


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


@pytest.mark.parametrize(
    "cls, option",
    [(OfflinePSO, {"timestep_sampling": "mode"}), (SmPO, {"timestep_sampling": "logit_normal"}), (SmPO, {"safeguard": 0.5})]
    + [(DPOKernels, {"safeguard": 0.5}), (DiffusionNPO, {"safeguard": 0.5})],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_argument_that_a_method_cannot_use_is_refused(cls, option):
    more = {"reward": Brightness(), "reward_range": (0.0, 1.0)} if cls is SmPO else {}
    (name,) = option
    with pytest.raises(ValueError, match=f"{cls.__name__} has no {name}, as .*: leave it out"):
        cls(policy=still(), **more, **option)


@pytest.mark.parametrize("make", [DiffusionDPO, partial(SFT, learns_from="win"), SPINDiffusion], ids=["dpo", "sft", "spin"])
def test_a_tie_is_refused_by_methods_that_need_a_winner(tmp_path, make):
    method = make(policy=still())
    data = batch(method.policy) | {"label": T([1.0, 1.0, 0.5]), "index": [7, 8, 9]}
    with pytest.raises(ValueError, match=f"row 9 is a tie, and {type(method).__name__} needs a winner: set --data.ties drop"):
        trainer(tmp_path).fit(method, loader([data]))


@pytest.mark.parametrize("accumulate, batches", [(2, 4), (3, 5)])
def test_what_is_logged_is_the_mean_over_the_pairs_of_an_optimizer_step(tmp_path, accumulate, batches):
    """Three pairs a batch; the last optimizer step of five batches in threes has two."""
    dpo, logged = DiffusionDPO(policy=tiny(), beta=5000.0, optimizer=sgd(0.0)), []
    move(dpo.policy, 0.1)

    class Read(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, data, i):
            logged.append({k: v.item() for k, v in trainer.logged_metrics.items()})

    with spy(dpo, "errors") as errors, spy(dpo, "batch_loss") as loss:
        trainer(tmp_path, callbacks=[Read()], accumulate_grad_batches=accumulate).fit(dpo, loader([batch(dpo.policy, seed=i) for i in range(batches)]))
    right = [(e.gap > 0).float() for e in errors.results]
    assert len({r.mean().item() for r in right}) > 1
    for i in range(batches):
        since = i - i % accumulate
        assert logged[i]["train/implicit_accuracy"] == pytest.approx(torch.cat(right[since : i + 1]).mean().item())
        assert logged[i]["train/loss"] == pytest.approx(torch.stack(loss.results[since : i + 1]).mean().item())
