"""Diffusion-DPO against hand numbers, and learning a pair set."""

import math

import pytest
import torch
from parts import trainer
from preferences import attached, batch, still

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.preference import Errors
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def errors(win, lose, ref_win, ref_lose):
    return Errors(*(torch.tensor([x], dtype=torch.float64) for x in (win, lose, ref_win, ref_lose)))


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None, generator=torch.Generator())


# the coefficient multiplies D, so the official beta 5000 with its 1/2 is 2500 here
@pytest.mark.parametrize("e,beta,expected", [
    (errors(0.10, 0.12, 0.101, 0.119), 2500, math.log1p(math.exp(-5.0))),  # D = .002
    (errors(0.10, 0.12, 0.1001, 0.1199), 2500, math.log1p(math.exp(-0.5))),  # D = .0002
])  # fmt: skip
def test_dpo_on_given_errors(e, beta, expected):
    assert DiffusionDPO(policy=still(), beta=beta).loss(e).item() == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx({2500 * 0.002: 0.00671535, 2500 * 0.0002: 0.47407698}[round(beta * e.gap.item(), 9)], abs=1e-7)


def test_swapping_the_pair_flips_the_gap():
    dpo, e = DiffusionDPO(policy=still(), beta=1.0), errors(0.1, 0.4, 0.3, 0.2)
    swapped = Errors(e.lose, e.win, e.ref_lose, e.ref_win)
    assert swapped.gap.item() == -e.gap.item()
    assert (dpo.loss(e) - dpo.loss(swapped)).item() == pytest.approx(-e.gap.item())  # softplus(-x) - softplus(x) = -x


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
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


def test_dpo_learns_to_tell_a_pair_apart(tmp_path):
    """One fixed pair set: implicit accuracy goes to 1, and with winners and losers swapped the same policy has 0."""
    torch.manual_seed(0)
    dpo = DiffusionDPO(policy=StableDiffusion("tiny"), beta=50.0, optimizer=lambda p: torch.optim.Adam(p, lr=5e-3))
    shape = (8, *dpo.policy.latent_shape)
    data = batch(dpo.policy, 8) | {"win_latents": 1 + 0.1 * torch.randn(shape), "lose_latents": -1 + 0.1 * torch.randn(shape)}
    trainer(tmp_path, max_epochs=None, max_steps=50).fit(dpo, loader([data] * 50))
    attached(dpo)
    torch.manual_seed(1)
    with torch.no_grad():
        gaps = torch.cat([dpo.errors(data).gap for _ in range(10)])
        swapped = torch.cat([dpo.errors(data | {"win_latents": data["lose_latents"], "lose_latents": data["win_latents"]}).gap for _ in range(10)])
    assert (gaps > 0).float().mean() > 0.7 and (swapped > 0).float().mean() < 0.3
