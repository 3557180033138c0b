"""ReFL: one call on an estimate of x_0."""

import pytest
import torch
import torch.nn.functional as F
from gradients import BATCH, ByHand, Calls, close, darkness, fresh, gradient, make, seeded

from lit_align.algorithms.reward_gradient.refl import ReFL
from lit_align.diffusion.sampler import Sampler


def test_refls_gradient_is_that_of_one_call_on_an_estimate_of_x_0():
    method = make(ReFL, fresh(), steps=6, min_step=3, eta=1.0)
    calls = Calls(method.policy)
    loss, got = seeded(method)
    hand = ByHand(method)
    torch.manual_seed(3)
    i = torch.randint(3, 6, ()).item()
    assert calls.all == i + 2 and calls.graded == 2  # forward, and again in backward
    x = torch.randn(2, *method.policy.latent_shape)
    times = hand.scheduler.timesteps
    with torch.no_grad():
        for t in times[:i]:
            x = hand.scheduler.step(hand.guided(x, t), t, x, eta=1.0, variance_noise=torch.randn_like(x)).prev_sample
    x_0 = hand.scheduler.step(hand.guided(x, times[i]), times[i], x).pred_original_sample
    want = 1e-3 * F.relu(2 - darkness(hand.image(x_0))).mean()
    assert loss == pytest.approx(want.item(), abs=1e-7)
    close(got, gradient(method, want))


def test_refl_draws_every_late_step_and_no_other():
    method, seen = make(ReFL, steps=3, min_step=1), []

    class Seen(Sampler):
        def __call__(self, *args, hooks, grad, **kwargs):
            seen.append((hooks[0].last, grad.tolist()))
            return super().__call__(*args, hooks=hooks, grad=grad, **kwargs)

    method.rollout = Seen(3, 1.0)
    for _ in range(16):
        method.batch_loss(BATCH)
    assert {last for last, _ in seen} == {1, 2}
    assert all(grad == [k == last for k in range(3)] for last, grad in seen)


def test_refl_teaches_nothing_above_its_threshold():
    loss, got = seeded(make(ReFL, threshold=-1.0))
    assert loss == 0 and not got.any()


def test_refls_anchor_is_the_denoising_loss_on_the_batchs_images():
    method = make(ReFL, threshold=-1.0, pretrain_weight=0.5)
    assert method.feedback == ("prompt", "image")
    x_0 = torch.randn(2, *method.policy.latent_shape)
    method.generate = lambda texts: torch.zeros(2, *method.policy.latent_shape)
    loss, got = seeded(method, BATCH | {"image_latents": x_0})
    torch.manual_seed(3)
    t, eps = torch.randint(1000, (2,)), torch.randn_like(x_0)
    hand = ByHand(method)
    want = 0.5 * F.mse_loss(hand.network(hand.scheduler.add_noise(x_0, eps, t), t, hand.cond), eps)
    assert loss == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


def test_a_step_that_the_rollout_lacks_is_refused():
    with pytest.raises(ValueError, match="min_step is 4; .* steps 0 to 3"):
        make(ReFL, min_step=4)
