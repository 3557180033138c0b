"""DRaFT and DRaFT-LV against back-propagation by hand."""

import pytest
import torch
from gradients import BATCH, ByHand, Calls, close, darkness, fresh, gradient, make, noise, seeded
from parts import T
from preferences import still

from lit_align.algorithms.reward_gradient.draft import DRaFT, DRaFTLV
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_drafts_gradient_is_back_propagation_through_a_loop_by_hand(family, K):
    method = make(DRaFT, still(family, 0.05), K=K)
    loss, got = seeded(method)
    hand = ByHand(method)
    keep = [i >= 4 - K for i in range(4)]
    want = -darkness(hand.image(hand.sample(noise(method), keep, cut_x=True))).mean()
    assert loss == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


def test_draft_without_K_is_draft_k_at_k_equal_t_and_differs_from_draft_1():
    every, one = seeded(make(DRaFT))[1], seeded(make(DRaFT, K=1))[1]
    assert torch.equal(every, seeded(make(DRaFT, K=4))[1])
    assert not torch.allclose(every, one, rtol=0.01)


def test_draft_1_depends_on_what_came_before_only_through_x():
    """Its gradient is that of the last step alone, from the x it started at."""
    method = make(DRaFT, K=1)
    _, got = seeded(method)
    state = method.rollout(method.policy, BATCH["prompt"], x=noise(method), record=True)
    x_1 = state.trajectory.x_t[:, -1]
    t, s = (method.rollout.timesteps(method.policy)[k].expand(2) for k in (-2, -1))
    gaussian, _, _ = method.rollout.gaussian(method.policy, x_1, t, s, method.policy.condition(BATCH["prompt"]))
    close(got, gradient(method, -darkness(method.policy.decode(gaussian.mean)).mean()))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_draft_lv_averages_draft_1_and_n_estimates_from_its_sample(family, n):
    method = make(DRaFTLV, still(family, 0.05), n=n)
    loss, got = seeded(method)
    again = seeded(method)
    assert loss == again[0] and torch.equal(got, again[1])  # deterministic, given the noise
    hand, x = ByHand(method), noise(method)
    eps = torch.randn(2 * n, *x.shape[1:]).chunk(n)
    x_0 = hand.sample(x, [False] * 3 + [True], cut_x=True)
    t = hand.scheduler.timesteps[-1]
    a, s = (1 - t / 1000, t / 1000) if hand.flow else (hand.scheduler.alphas_cumprod[t].sqrt(), (1 - hand.scheduler.alphas_cumprod[t]).sqrt())
    rewards = [darkness(hand.image(x_0))]
    for e in eps:
        x_1 = a * x_0.detach() + s * e
        out = hand.guided(x_1, t)
        rewards.append(darkness(hand.image(x_1 - s * out if hand.flow else (x_1 - s * out) / a)))
    want = -torch.cat(rewards).mean()
    assert loss == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


def test_memory_is_that_of_one_step():
    """Between forward and backward nothing of a kept step's network is held: each is called again."""

    def held(K):
        method, size = make(DRaFT, fresh(), steps=8, K=K), 0

        def pack(x):
            nonlocal size
            size += x.numel()
            return x

        calls = Calls(method.policy)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = method.batch_loss(BATCH)
        gradient(method, loss)
        assert calls.all == 8 + K and calls.graded == 2 * K
        return size, method

    (one, method), (eight, _) = held(1), held(8)
    network, x = 0, torch.randn(4, *method.policy.latent_shape)

    def pack(y):
        nonlocal network
        network += y.numel()
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        method.policy.denoise(x, T([500] * 4), method.policy.condition(BATCH["prompt"] * 2))
    assert (eight - one) / 7 < network / 10


def test_a_K_that_the_rollout_lacks_is_refused():
    with pytest.raises(ValueError, match="K is 5; .* 1 to 4 steps"):
        make(DRaFT, K=5)
