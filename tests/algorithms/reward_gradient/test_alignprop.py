"""AlignProp: which steps keep their gradient, and its loss."""

import pytest
import torch
from gradients import ByHand, close, darkness, gradient, make, noise, seeded
from parts import Darkness, T, prompts, trained, trainer
from preferences import still

from lit_align.algorithms.reward_gradient.alignprop import AlignProp
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("keep", [[1, 0, 1, 0], [0, 1, 0, 1]], ids=str)
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_alignprops_left_out_steps_still_pass_gradient_along_x(family, keep):
    method = make(AlignProp, still(family, 0.05))
    method.grad_steps = lambda steps: T(keep).bool()
    loss, got = seeded(method)
    hand = ByHand(method)
    want = 0.01 * (10 - darkness(hand.image(hand.sample(noise(method), keep, cut_x=False)))).mean()
    assert loss == pytest.approx(want.item(), abs=1e-6)
    close(got, gradient(method, want))


def test_alignprop_keeps_step_i_with_probability_i_plus_1_over_t_plus_1():
    method, n, steps = make(AlignProp), 20_000, 50
    torch.manual_seed(0)
    keep = torch.stack([method.grad_steps(steps) for _ in range(n)])
    p = (torch.arange(steps) + 1) / (steps + 1)
    z = (keep.float().mean(0) - p) / (p * (1 - p) / n).sqrt()
    assert (z.abs() < 3).float().mean() >= 0.94 and z.abs().max() < 4.5
    total = keep.sum(1).float()
    assert abs(total.mean() - 25) < 3 * total.std() / n**0.5
    assert (keep[:, :-1] & ~keep[:, 1:]).any()  # with gaps


def test_alignprop_per_trajectory_keeps_the_last_k():
    method = make(AlignProp, truncation="trajectory")
    torch.manual_seed(0)
    keep = torch.stack([method.grad_steps(50) for _ in range(20_000)])
    assert not (keep[:, :-1] & ~keep[:, 1:]).any() and keep[:, -1].all()
    K = keep.sum(1)
    counts = torch.bincount(K, minlength=51)[1:].float()
    assert K.min() == 1 and K.max() == 50
    assert ((counts - 400).abs() / (400 * 0.98) ** 0.5).max() < 4.5


def test_alignprops_losses_are_those_of_the_paper():
    r = T([5.0, 6.5])
    torch.testing.assert_close(make(AlignProp).loss(r), T([0.05, 0.035]))
    torch.testing.assert_close(make(AlignProp, target=1.0).loss(T([0.28])), T([0.0072]))


def test_a_draw_that_kept_nothing_trains_nothing(tmp_path):
    method = AlignProp(policy=StableDiffusion("tiny", LoRA(rank=2)), reward=Darkness(), rollout=Sampler(2, 1.0), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    method.grad_steps = lambda steps: torch.zeros(steps, dtype=torch.bool)
    before = [p.detach().clone() for p in trained(method.policy)]
    trainer(tmp_path).fit(method, prompts())
    assert all(torch.equal(a, b) for a, b in zip(before, trained(method.policy)))
