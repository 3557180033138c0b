"""DRTune against back-propagation by hand."""

import pytest
import torch
from gradients import BATCH, ByHand, close, darkness, gradient, make, seeded
from preferences import still

from lit_align.algorithms.reward_gradient.draft import DRaFT
from lit_align.algorithms.reward_gradient.drtune import DRTune
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def by_hand(hand, x, keep):
    """The network sees x as a constant; the scheduler's formula passes its gradient on."""
    for i, t in enumerate(hand.scheduler.timesteps):
        prediction = hand.guided(x.detach(), t)
        x = hand.scheduler.step(prediction if keep[i] else prediction.detach(), t, x).prev_sample
    return x


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_the_gradient_is_that_of_a_loop_by_hand(family, K):
    method = make(DRTune, still(family, 0.05), K=K)
    torch.manual_seed(3)
    method.grad_steps = lambda steps, keep=method.grad_steps(4): keep
    loss, got = seeded(method)
    torch.manual_seed(3)
    torch.randint(1, ())  # the step at which the loop ends
    hand, x = ByHand(method), torch.randn(2, *method.policy.latent_shape)
    want = -darkness(hand.image(by_hand(hand, x, method.grad_steps(4).tolist()))).mean()
    assert loss == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


def test_without_the_stopped_input_it_would_be_draft():
    same, other = make(DRTune, K=4), make(DRaFT)
    a, b = seeded(same), seeded(other)
    assert not torch.allclose(a[1], b[1], rtol=0.01)


@pytest.mark.parametrize("K,steps,sets", [(2, 4, {(0, 2), (1, 3)}), (4, 4, {(0, 1, 2, 3)}), (3, 7, {(0, 2, 4), (1, 3, 5), (2, 4, 6)}), (1, 3, {(0,), (1,), (2,)})])
def test_trained_steps_are_spread_evenly_from_a_random_first(K, steps, sets):
    method = make(DRTune, steps=steps, K=K)
    torch.manual_seed(0)
    assert {tuple(method.grad_steps(steps).nonzero().flatten().tolist()) for _ in range(60)} == sets


def test_an_early_stop_scores_the_estimate_at_its_step():
    method, scored = make(DRTune, K=4, early_stop=3), set()
    for seed in range(20):
        torch.manual_seed(seed)
        method.rank_zero = lambda value, seen=scored: seen.add(value[1]) or value
        x = method.generate(BATCH)
    assert scored == {1, 2, 3}
    torch.manual_seed(seed)
    method.grad_steps(4), torch.randint(3, ())
    start = torch.randn(2, *method.policy.latent_shape)
    last = method.rollout(method.policy, BATCH["prompt"], x=start, record=True)
    estimates = []
    for k in range(4):
        t = method.rollout.timesteps(method.policy)[k].expand(2)
        x_t = last.trajectory.x_t[:, k]
        estimates.append(method.rollout.predict(method.policy, x_t, t, method.policy.condition(BATCH["prompt"]))[0])
    assert min((x - e).abs().max() for e in estimates[1:]) < 1e-5


def test_numbers_beyond_the_rollout_are_refused():
    for options in ({"K": 5}, {"K": 0}, {"early_stop": 5}, {"early_stop": 0}):
        with pytest.raises(ValueError, match="this rollout allows 1 to 4 steps"):
            make(DRTune, **options)


def test_the_last_step_alone_is_draft_1():
    """With K 1 at the last step the stopped input is the whole of what comes before."""
    method = make(DRTune, K=1)
    method.grad_steps = lambda steps: torch.arange(steps) == steps - 1
    torch.manual_seed(3)
    torch.randint(1, ())
    x = torch.randn(2, *method.policy.latent_shape)
    torch.manual_seed(3)
    got = gradient(method, method.batch_loss(BATCH))
    draft = make(DRaFT, K=1)
    draft.generate = lambda batch: draft.rollout(draft.policy, batch["prompt"], x=x, grad=draft.grad_steps(4)).x
    close(got, gradient(draft, draft.batch_loss(BATCH)))
