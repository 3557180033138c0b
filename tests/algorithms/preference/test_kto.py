"""Diffusion-KTO against hand numbers."""

import math

import pytest
import torch
from parts import T, trained
from preferences import attached, batch, still

from lit_align.algorithms.preference.kto import DiffusionKTO
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("utility,start", [("kahneman_tversky", 0.5), ("loss_averse", 1 + math.log(2)), ("risk_seeking", 1 - math.log(2))])
def test_ktos_utilities_start_where_the_formula_says(policy, utility, start):
    kto = DiffusionKTO(policy=policy, utility=utility)
    assert kto.loss(torch.zeros(2), T([True, False]), T(0.0)).tolist() == pytest.approx([start, start], abs=1e-6)


def test_kto_on_given_errors(policy):
    kto = DiffusionKTO(policy=policy, beta=5000.0)
    h, good = T([4e-4, -4e-4, 4e-4], dtype=torch.float64), T([True, True, False])
    torch.testing.assert_close(kto.loss(h, good, T(0.0)), T([0.11920292, 0.88079708, 0.88079708], dtype=torch.float64), atol=1e-7, rtol=0)


def test_ktos_reference_point_is_the_mean_over_all_ranks_at_least_zero_and_constant(policy):
    kto = attached(DiffusionKTO(policy=policy))
    other = T([0.3, 0.1, -0.1])
    kto.all_gather = lambda h: torch.stack([h, other])
    kto.batch_loss(batch(policy))  # own h is 0 at the start
    assert kto.logged["train/z"] == pytest.approx(0.05)
    kto.all_gather = lambda h: torch.stack([h, -other])
    kto.batch_loss(batch(policy))
    assert kto.logged["train/z"] == 0.0


def test_the_reference_point_carries_no_gradient(policy):
    """With it, the gradients of a batch of good images would cancel at h = z."""
    kto = attached(DiffusionKTO(policy=policy, beta=1.0))
    torch.manual_seed(0)
    got = torch.autograd.grad(kto.batch_loss(batch(policy, label=T([1.0, 1.0, 1.0]))), trained(kto), allow_unused=True)
    assert sum(g.abs().sum() for g in got if g is not None) > 0


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
def test_it_starts_at_one_half_and_good_images_pull_where_bad_ones_push(family):
    kto = attached(DiffusionKTO(policy=still(family)))

    def gradient(label):
        torch.manual_seed(0)
        loss = kto.batch_loss(batch(kto.policy, label=T([label] * 3)))
        assert loss.item() == pytest.approx(0.5, abs=1e-5)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(kto))])

    good, bad = gradient(1.0), gradient(0.0)
    torch.testing.assert_close(good, -bad, rtol=1e-3, atol=1e-4 * good.abs().max().item())
    assert good.any()


def test_each_kind_has_its_weight(policy):
    kto = DiffusionKTO(policy=policy, weight_good=2.0, weight_bad=0.5)
    assert kto.loss(torch.zeros(2), T([True, False]), T(0.0)).tolist() == pytest.approx([1.0, 0.25])
