from collections import Counter

import pytest
import torch
from torch import nn

from lit_align.algorithms.inference.fk_steering import systematic
from lit_align.diffusion.process import Flow, Process
from lit_align.diffusion.sampler import Hook, Sampler, State, all_steps, last_k, random_steps
from lit_align.diffusion.transition import DDIM, FlowSDE

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip


class Analytic(nn.Module):
    """The exact flow of data N(m, d^2), with a parameter added to its prediction: what a policy is to the sampler."""

    def __init__(self, m=1.5, d=0.5, process=None, shape=(1, 2, 2)):
        super().__init__()
        self.process, self.m, self.d, self.latent_shape = process or Flow(), m, d, shape
        self.bias, self.calls, self.device = nn.Parameter(torch.zeros(())), Counter(), torch.device("cpu")

    def condition(self, prompts):
        return {"c": torch.zeros(len(prompts), 1)}

    def denoise(self, x, t, cond, guidance_scale=1.0):
        self.calls["denoise"] += len(x)
        a, s = self.process.coefficients(t, x)
        var = a**2 * self.d**2 + s**2
        eps = s / var * (x - a * self.m)
        x_0 = self.m + a * self.d**2 / var * (x - a * self.m)
        return (eps - x_0 if self.process.prediction == "flow" else eps) + self.bias * (1 + 0.1 * x)

    def decode(self, z):
        self.calls["decode"] += len(z)
        return z


def test_the_ode_draws_the_data_law():
    state = Sampler(100, 1.0)(Analytic(), [""] * 4000)
    assert state.x.mean().item() == pytest.approx(1.5, abs=0.02) and state.x.std().item() == pytest.approx(0.484, abs=0.02)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_depends_on_its_seed_alone(eta):
    sampler, policy = Sampler(5, 1.0, DDIM(eta)), Analytic(process=Process.from_scheduler(SD))
    together = sampler(policy, [""] * 3, seeds=[7, 8, 9]).x
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(sampler(policy, [""], seeds=[seed]).x[0], together[i])


@pytest.mark.parametrize("process,rule", [(Process.from_scheduler(SD), DDIM(1.0)), (Flow(3.0), FlowSDE(0.7))])
def test_a_recorded_step_seen_again_has_ratio_exactly_one(process, rule):
    sampler, policy = Sampler(8, 1.0, rule), Analytic(process=process)
    trajectory = sampler(policy, [""] * 6, record=True).trajectory
    assert trajectory.x_t.shape == trajectory.x_s.shape == (6, 8, 1, 2, 2) and trajectory.log_prob.shape == (6, 8)
    for i in range(8):
        m = trajectory.minibatch(torch.arange(6), torch.full((6,), i))
        gaussian, _, _ = sampler.gaussian(policy, m["x_t"], m["t"], m["s"], m["cond"])
        assert torch.equal((gaussian.log_prob(m["x_s"]) - m["log_prob"]).exp(), torch.ones(6))


def test_deterministic_steps_are_recorded_without_likelihood():
    trajectory = Sampler(4, 1.0)(Analytic(), [""] * 2, record=True).trajectory
    assert not trajectory.log_prob.any()


def rollout(policy, x, grad, steps=6):
    policy.bias.grad = None
    Sampler(steps, 1.0)(policy, cond={"c": torch.zeros(len(x), 1)}, x=x, grad=grad).x.square().sum().backward()
    return policy.bias.grad.clone()


def by_hand(policy, x, keep, steps=6):
    """The Euler loop written out, gradient cut where keep is False."""
    policy.bias.grad = None
    grid = policy.process.timesteps(steps)
    for i in range(steps):
        v = policy.denoise(x, grid[i].expand(len(x)), None)
        x = x + (grid[i + 1] - grid[i]) * (v if keep[i] else v.detach())
    x.square().sum().backward()
    return policy.bias.grad.clone()


@pytest.mark.parametrize("keep", [all_steps(6), last_k(6, 1), last_k(6, 3), torch.tensor([1, 0, 0, 1, 0, 1]).bool()])
def test_gradient_flows_where_it_is_told_to(keep):
    """Against a hand-written loop: a step that is cut still passes gradient along x_t -> x_s."""
    policy, x = Analytic(), torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rollout(policy, x, keep), by_hand(policy, x, keep), rtol=1e-4, atol=1e-5)


def test_no_gradient_unless_asked_for():
    state = Sampler(3, 1.0)(Analytic(), [""])
    assert not state.x.requires_grad


def test_draft_k_is_full_backpropagation_at_k_equal_t():
    assert torch.equal(last_k(6, 6), all_steps(6)) and last_k(6, 2).tolist() == [False] * 4 + [True] * 2


def test_alignprop_keeps_step_i_with_probability_i_plus_one_over_n_plus_one():
    n, draws = 50, 20_000
    kept = torch.stack([random_steps(n) for _ in range(draws)]).float()
    p = (torch.arange(n) + 1) / (n + 1)
    assert ((kept.mean(0) - p).abs() < 4.5 * (p * (1 - p) / draws).sqrt()).all()
    assert kept.sum(1).mean().item() == pytest.approx(25.0, abs=0.1)


def test_calls_are_counted_per_particle():
    assert Sampler(7, 1.0)(Analytic(), [""] * 5).calls["denoise"] == 7


def test_reindex_moves_everything_and_clones_part_ways():
    state = State(torch.arange(3.0).view(3, 1), {"c": torch.arange(3)}, ["a", "b", "c"], [torch.Generator().manual_seed(i) for i in range(3)])
    state.logw, state.extras = torch.tensor([0.0, 1.0, 2.0]), {"deep": {"r": torch.tensor([5, 6, 7])}, "names": ["x", "y", "z"]}
    state.history = [{"x_t": torch.arange(3)}]
    state.reindex(torch.tensor([2, 2, 0, 1]))
    assert state.x.flatten().tolist() == [2, 2, 0, 1] and state.prompts == ["c", "c", "a", "b"]
    assert state.cond["c"].tolist() == [2, 2, 0, 1] and state.logw.tolist() == [2, 2, 0, 1]
    assert state.extras["deep"]["r"].tolist() == [7, 7, 5, 6] and state.extras["names"] == ["z", "z", "x", "y"]
    assert state.history[0]["x_t"].tolist() == [2, 2, 0, 1]
    noise = [torch.randn(4, generator=g) for g in state.generators]
    assert not torch.equal(noise[0], noise[1])


class Zigzag(Hook):
    """Steps 0 1 2, back to 1, then on."""

    def __init__(self):
        self.path, self.back = [], True

    def after_step(self, policy, state):
        self.path.append(state.i)

    def control(self, policy, state):
        if state.i == 2 and self.back:
            self.back = False
            return 1
        return state.i + 1


def test_a_hook_can_jump_and_the_record_follows():
    hook = Zigzag()
    state = Sampler(4, 1.0)(Analytic(), [""], hook=hook, record=True)
    assert hook.path == [0, 1, 2, 1, 2, 3] and state.trajectory.t.shape == (1, 6)
    grid = Flow().timesteps(4)
    torch.testing.assert_close(state.trajectory.t[0], grid[[0, 1, 2, 1, 2, 3]])


class Guided(Hook):
    """Universal guidance in one line: eps plus the gradient of a loss on x0-hat, taken through the denoiser."""

    def __init__(self, target, scale):
        self.target, self.scale = target, scale

    def predict(self, policy, state, sampler):
        with torch.enable_grad():
            x = state.x.detach().requires_grad_()
            x0, eps = sampler.predict(policy, x, state.t.expand(len(x)), state.cond)
            (gradient,) = torch.autograd.grad((x0 - self.target).square().sum(), x)
        state.x0, state.eps = x0.detach() - self.scale * gradient, eps.detach()


def test_a_hook_can_take_the_gradient_in_x():
    plain = Sampler(20, 1.0)(Analytic(), [""] * 64, seeds=list(range(64))).x
    guided = Sampler(20, 1.0)(Analytic(), [""] * 64, seeds=list(range(64)), hook=Guided(3.0, 0.05)).x
    none = Sampler(20, 1.0)(Analytic(), [""] * 64, seeds=list(range(64)), hook=Guided(3.0, 0.0)).x
    assert (guided.mean() - plain.mean()) > 0.2 and torch.equal(none, plain)


def test_systematic_resampling_counts():
    log_w = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25] * 4]).log()
    for _ in range(50):
        first, second = systematic(log_w)
        assert torch.bincount(first, minlength=4).tolist() == [2, 1, 1, 0] and second.tolist() == [0, 1, 2, 3]
