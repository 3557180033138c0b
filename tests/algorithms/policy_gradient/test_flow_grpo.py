"""FlowGRPO, its windows and GRPO-Guard."""

import math

import pytest
import torch
from online import policy_gradient, quiet, step
from parts import Darkness, T, move, prompts, rollout, sgd, spy, tiny, trainer

from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.diffusion.process import Flow
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import CPS, DDIM, DanceSDE, FlowSDE, Gaussian, Windowed
from lit_align.policies.stable_diffusion3 import StableDiffusion3

FLOW = lambda steps=6: Sampler(steps, 2.0, FlowSDE(0.7))


def make(policy=None, **kwargs):
    policy = policy or tiny(StableDiffusion3)
    return policy_gradient(FlowGRPO, policy, **({"rollout": rollout(policy, 4), "samples_per_prompt": 4, "minibatch": 8} | kwargs))


@pytest.mark.parametrize("slide_every,want", [(1, [0, 1, 2, 0, 1]), (2, [0, 0, 1, 1, 2])])
def test_a_sliding_window_goes_from_noise_to_data_and_starts_again(tmp_path, slide_every, want):
    method = make(rollout=FLOW(), window=2, window_range=(0, 4), slide_every=slide_every, beta=0.0)
    with spy(method, "collect") as collect:
        trainer(tmp_path).fit(method, prompts(1, 5))
    noisy = [(trajectory.log_prob[0] != 0).nonzero().flatten().tolist() for trajectory, _ in collect.results]
    assert noisy == [[k, k + 1] for k in want]


def test_a_drawn_window_visits_every_place_and_alone_is_learnt_from(tmp_path):
    method = make(rollout=FLOW(4), window=1, beta=0.0, samples_per_prompt=2)
    with spy(method, "evaluate") as evaluate:
        trainer(tmp_path).fit(method, prompts(1, 20))
    learnt = [set(call.args[3].tolist()) for call in evaluate.call_args_list]
    assert all(len(steps) == 1 for steps in learnt) and set.union(*learnt) == {0, 1, 2}  # never the last step


def test_a_fraction_of_the_steps_and_one_noise_for_a_prompt(tmp_path):
    method = make(rollout=FLOW(6), fraction=0.6, shared_noise=True, beta=0.0, minibatch=100)
    with spy(method, "update") as update:
        trainer(tmp_path).fit(method, prompts(2))
    trajectory, _, _, steps = update.call_args.args
    assert len(steps) == 3 and 5 not in steps  # 0.6 of five
    x = trajectory.x_t[:, 0]
    assert all(torch.equal(x[0], x[i]) for i in (1, 2, 3)) and not torch.equal(x[0], x[4])


def test_the_kl_is_the_released_codes():
    """mean (mu - mu_ref)^2 / (2 sigma_t^2), with the step's std = sigma_t sqrt(t - s)."""
    method = quiet(make(beta=0.04))
    std, t, s = 0.352797, 0.707278, 0.602151
    sigma = std / math.sqrt(t - s)
    loss = method.loss(step(0.0, 2.0, mean=0.3, ref_mean=0.1, std=std, t=t, s=s))
    assert loss.item() == pytest.approx(-2.0 + 0.04 * 0.2**2 / (2 * sigma**2), rel=1e-5)


def test_off_a_flow_the_kl_is_the_gaussians_own():
    method = quiet(make(tiny(), beta=0.04))
    loss = method.loss(step(0.0, 2.0, mean=0.3, ref_mean=0.1, std=0.5, t=501.0, s=481.0))
    assert loss.item() == pytest.approx(-2.0 + 0.04 * 0.2**2 / (2 * 0.5**2), rel=1e-5)


@pytest.mark.parametrize("transition", [CPS(0.8), DanceSDE(0.3), DDIM(1.0)], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("window", [None, 2])
def test_under_other_transitions_of_a_flow_the_kl_is_the_gaussians_own(transition, window):
    """The released code divides by the step's own variance under CPS: there is no t - s to it."""
    method = quiet(make(beta=0.04, rollout=Sampler(4, 1.0, transition), window=window))
    loss = method.loss(step(0.0, 2.0, mean=0.3, ref_mean=0.1, std=0.5, t=0.7, s=0.6))
    assert loss.item() == pytest.approx(-2.0 + 0.04 * 0.2**2 / (2 * 0.5**2), rel=1e-5)


def test_samples_without_advantage_are_left_out_of_the_mean_with_their_kl(tmp_path):
    """The gradient of an optimizer step is that of the mean over the prompt whose rewards differ."""

    class OneDiffers(Darkness):
        def forward(self, images, prompts):
            return torch.where(T([p == "p0" for p in prompts]), super().forward(images, prompts), 0.25)

    method = make(reward=OneDiffers(), beta=0.5, updates=1, minibatch=100, optimizer=sgd(0.0), clip_range=10.0)
    move(method.policy)
    with spy(method, "evaluate") as evaluate, spy(method, "collect") as collect, spy(method, "batch_loss") as loss:
        trainer(tmp_path).fit(method, prompts(2))
    (step,), (_, advantage) = evaluate.results, collect.results[0]
    assert advantage[:4].abs().min() > 0 and not advantage[4:].any()
    rows = evaluate.call_args.args[2] < 4
    kl = (step.gaussian.mean - step.reference.mean).square().flatten(1).mean(1) / (2 * step.gaussian.std.flatten(1)[:, 0].square())
    want = (-step.ratio * step.advantage + 0.5 * kl * (step.t - step.s))[rows].mean()
    assert 0 < rows.sum() < len(rows) and kl.min() > 0
    assert loss.results[0].item() == pytest.approx(want.item(), rel=1e-4)


def test_a_rollout_without_any_advantage_changes_nothing(tmp_path):
    class Flat(Darkness):
        def forward(self, images, prompts):
            return torch.full((len(images),), 20.95)

    method = make(reward=Flat(), beta=0.5, optimizer=sgd(1.0))
    move(method.policy)
    before = [p.detach().clone() for p in method.policy.parameters()]
    trainer(tmp_path).fit(method, prompts(2, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, method.policy.parameters(), strict=True))


@pytest.mark.parametrize("delta,advantage,want", [(0.2, 1.0, -1.1), (0.2, -1.0, math.exp(0.2)), (-0.2, 1.0, -math.exp(-0.2)), (-0.2, -1.0, 0.9)])
def test_clipping_binds_where_it_would_help(delta, advantage, want):
    method = quiet(make(beta=0.0, clip_range=0.1))
    assert method.loss(step(delta, advantage)).item() == pytest.approx(want, rel=1e-5)


def test_the_guarded_ratio_has_mean_one():
    """Of x_s drawn from the old N(mu_old, s^2): E[delta] = -(mu - mu_old)^2 / 2 s^2, which the guard adds back."""
    method, n, s, mu = quiet(make(beta=0.0, guard=True)), 200_000, 0.3, 0.02
    torch.manual_seed(0)
    x = s * torch.randn(n, 1)
    one = lambda v: torch.full((n, 1), v)
    new, old = Gaussian(one(mu), one(s)), Gaussian(one(0.0), one(s))
    rest = {"x_t": x, "x_s": x, "t": torch.ones(n), "s": torch.zeros(n), "cond": {}}
    drawn = StepBatch(new, new.log_prob(x), old.log_prob(x), torch.ones(n), **rest, old_mean=old.mean)
    log_rho = method.ratio(drawn).log()
    assert abs(log_rho.mean()) < 4 * log_rho.std() / n**0.5
    assert log_rho.std().item() == pytest.approx(mu, rel=0.02)  # (mu / s) s: the same at every noise level
    assert abs(drawn.ratio.log().mean().item() + mu**2 / (2 * s**2)) < 1e-3  # without it: below


def test_the_guard_gives_the_velocity_as_much_gradient_at_every_step():
    """mu = x + (1 + a^2 / 2) (s - t) v + ..., so d log rho / dv is -(1 + a^2 / 2) (s - t) eps / D whatever s is, where the
    ratio is 1; unguarded it goes with (t - s) / std."""
    method, process, a, A = quiet(make(beta=0.0, guard=True)), Flow(), 0.7, 1.5
    x_t, eps = torch.randn(1, 4), torch.randn(1, 4)
    for t, s in ((0.9, 0.85), (0.5, 0.2), (0.3, 0.1)):
        v, (t, s) = torch.randn(1, 4, requires_grad=True), (T([t]), T([s]))
        gaussian = FlowSDE(a)(process, x_t, x_t - t * v, x_t + (1 - t) * v, t, s)
        old = Gaussian(gaussian.mean.detach(), gaussian.std)
        x_s = old.sample(eps)
        rest = {"x_t": x_t, "x_s": x_s, "t": t, "s": s, "cond": {}, "old_mean": old.mean}
        loss = method.loss(StepBatch(gaussian, gaussian.log_prob(x_s), old.log_prob(x_s), T([A]), **rest))
        (grad,) = torch.autograd.grad(loss.sum(), v)
        torch.testing.assert_close(grad, A * (1 + a**2 / 2) * eps / 4)
    with pytest.raises(ValueError, match="guard balances the steps of FlowSDE"):
        make(rollout=Sampler(4, 1.0, DDIM(1.0)), guard=True)


def test_a_window_is_the_rollouts_alone():
    sampler = FLOW(6)
    method = make(rollout=sampler, sampler=sampler, window=2)
    assert isinstance(method.rollout.transition, Windowed) and isinstance(method.sampler.transition, FlowSDE)


def test_a_window_that_does_not_fit_is_refused():
    for range in ((2, 4), (0, 6), (3, 9)):
        with pytest.raises(ValueError, match="a window of 3 does not fit"):
            make(rollout=FLOW(6), window=3, window_range=range)
