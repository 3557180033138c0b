import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.preference import Errors
from lit_align.algorithms.preference.sft import SFT
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

FAMILIES = [StableDiffusion, StableDiffusionXL, StableDiffusion3]


def batch(policy, n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = policy.resolution
    images = torch.rand(2, n, 3, r, r, generator=g)
    return {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "win": images[0], "lose": images[1]}


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **(quiet | {"max_steps": 1} | kwargs))


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None, generator=torch.Generator())


def attached(method):
    """The method with a Trainer, so that it can log and knows that it trains."""
    method.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=False)
    method.trainer.training = True
    method.log = lambda *args, **kwargs: None
    return method


def errors(win, lose, ref_win, ref_lose):
    return Errors(*(torch.tensor([x], dtype=torch.float64) for x in (win, lose, ref_win, ref_lose)))


# the coefficient multiplies D, so the official beta 5000 with its 1/2 is 2500 here
@pytest.mark.parametrize("e,beta,expected", [
    (errors(0.10, 0.12, 0.101, 0.119), 2500, math.log1p(math.exp(-5.0))),  # D = .002
    (errors(0.10, 0.12, 0.1001, 0.1199), 2500, math.log1p(math.exp(-0.5))),  # D = .0002
])  # fmt: skip
def test_dpo_on_given_errors(e, beta, expected):
    assert DiffusionDPO(policy=StableDiffusion("tiny"), beta=beta).loss(e).item() == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx({2500 * 0.002: 0.00671535, 2500 * 0.0002: 0.47407698}[round(beta * e.gap.item(), 9)], abs=1e-7)


def test_swapping_the_pair_flips_the_gap():
    dpo, e = DiffusionDPO(policy=StableDiffusion("tiny"), beta=1.0), errors(0.1, 0.4, 0.3, 0.2)
    swapped = Errors(e.lose, e.win, e.ref_lose, e.ref_win)
    assert swapped.gap.item() == -e.gap.item()
    assert (dpo.loss(e) - dpo.loss(swapped)).item() == pytest.approx(-e.gap.item())  # softplus(-x) - softplus(x) = -x


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_the_loss_starts_at_ln_2_and_its_gradient_is_half_beta_times_the_errors(family, adapter):
    """d loss = -s sigmoid(-s D) dD = s/2 (grad L_w - grad L_l) at policy = reference."""
    dpo = attached(DiffusionDPO(policy=family("tiny", adapter), beta=100.0))
    dpo.policy.add_reference()
    data = batch(dpo.policy)
    torch.manual_seed(3)
    loss = dpo.batch_loss(data)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    loss.backward()
    got = torch.cat([p.grad.flatten() for p in dpo.parameters() if p.requires_grad])
    torch.manual_seed(3)
    e = dpo.errors(data)
    want = torch.autograd.grad(50.0 * (e.win - e.lose).mean(), [p for p in dpo.parameters() if p.requires_grad])
    torch.testing.assert_close(got, torch.cat([w.flatten() for w in want]), rtol=1e-3, atol=1e-4 * got.abs().max().item())


def test_errors_are_the_papers_written_out():
    """An independent computation: each image by itself, noise and timestep shared within the pair, reference by hand."""
    dpo = attached(DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2))))
    for p in (p for p in dpo.parameters() if p.requires_grad):
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
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
    dpo = attached(DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2))))
    for p in dpo.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
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


def test_dpo_learns_to_tell_a_pair_apart(tmp_path):
    """One fixed pair set: implicit accuracy goes to 1, and with winners and losers swapped the same policy has 0."""
    torch.manual_seed(0)
    dpo = DiffusionDPO(policy=StableDiffusion("tiny"), beta=50.0, optimizer=lambda p: torch.optim.Adam(p, lr=2e-3))
    shape = (8, *dpo.policy.latent_shape)
    data = batch(dpo.policy, 8) | {"win_latents": 1 + 0.1 * torch.randn(shape), "lose_latents": -1 + 0.1 * torch.randn(shape)}
    trainer(tmp_path, max_steps=150).fit(dpo, loader([data] * 150))
    attached(dpo)
    torch.manual_seed(1)
    with torch.no_grad():
        gaps = torch.cat([dpo.errors(data).gap for _ in range(20)])
        swapped = torch.cat([dpo.errors(data | {"win_latents": data["lose_latents"], "lose_latents": data["win_latents"]}).gap for _ in range(20)])
    assert (gaps > 0).float().mean() > 0.7 and (swapped > 0).float().mean() < 0.3


def test_sft_is_the_denoising_loss(tmp_path):
    sft = attached(SFT(policy=StableDiffusion3("tiny"), timestep_sampling="logit_normal"))
    x = torch.randn(3, *sft.policy.latent_shape)
    data = {"prompt": ["a", "b", "c"], "index": [0, 1, 2], "image_latents": x}
    torch.manual_seed(4)
    loss = sft.batch_loss(data)
    torch.manual_seed(4)
    u = torch.randn(3).sigmoid()
    t, eps = 3 * u / (1 + 2 * u), torch.randn_like(x)
    torch.rand(3)
    cond = sft.policy.condition(data["prompt"])
    t_ = t.view(-1, 1, 1, 1)
    v = sft.policy.denoiser((1 - t_) * x + t_ * eps, cond["text"], cond["pooled"], t * 1000).sample
    assert loss.item() == pytest.approx(F.mse_loss(v, eps - x).item(), rel=1e-5)


def test_sft_on_winners_reads_a_pair_set(tmp_path):
    sft = SFT(policy=StableDiffusion("tiny", LoRA(rank=2)), learns_from="win")
    trainer(tmp_path).fit(sft, loader([batch(sft.policy)]))


def test_the_wrong_feedback_is_named(tmp_path):
    dpo = DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2)))
    with pytest.raises(TypeError, match="DiffusionDPO learns from win, lose; .* gave prompt, index"):
        trainer(tmp_path).fit(dpo, loader([{"prompt": ["x"], "index": [0]}]))


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(tmp_path):
    dpo = DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2)))
    good = batch(dpo.policy)
    bad = good | {"index": [41, 42, 43], "win": good["win"] * float("nan")}
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 2 on \[41, 42, 43\]"):
        trainer(tmp_path, max_steps=5).fit(dpo, loader([good, good, bad]))


def test_dropped_captions_are_the_empty_one(tmp_path):
    dpo = attached(DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2)), caption_dropout=0.5))
    data = batch(dpo.policy, 40)
    cond, empty, full = dpo.cond(data), dpo.policy.condition([""] * 40), dpo.policy.condition(data["prompt"])
    same = lambda a, b: [torch.allclose(x, y, atol=1e-5) for x, y in zip(a["text"], b["text"])]
    dropped, kept = same(cond, empty), same(cond, full)
    assert all(d != k for d, k in zip(dropped, kept)) and 8 < sum(dropped) < 32
    cached = dpo.cond(data | {"cond": full})
    assert all(a or b for a, b in zip(same(cached, empty), same(cached, full)))
    dpo.trainer.training = False
    assert all(same(dpo.cond(data), full))
