"""Hooks: what they can change, and how they nest."""

import pytest
import torch
from parts import Analytic

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import Flow
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.transition import DDIM, FlowSDE, Gaussian

SEEDS = {"seeds": [3, 4, 5]}
PROMPTS = [""] * 3


class Zigzag(Hook):
    """Steps 0 1 2, back to 1, then on."""

    def __init__(self):
        self.path, self.back = [], True

    def after_step(self, policy, state):
        super().after_step(policy, state)
        self.path.append(state.i)

    def control(self, policy, state):
        if state.i == 2 and self.back:
            self.back = False
            return 1
        return super().control(policy, state)


class Guided(Hook):
    """Universal guidance in one line: x0 plus the gradient of a loss on x0-hat, taken through what lies inside."""

    def __init__(self, target, scale):
        self.target, self.scale = target, scale

    def predict(self, policy, state, sampler):
        x = state.x
        with torch.enable_grad():
            state.x, state.needs_grad = x.detach().requires_grad_(), True
            super().predict(policy, state, sampler)
            (gradient,) = torch.autograd.grad((state.x0 - self.target).square().sum(), state.x)
        state.x, state.x0, state.eps = x, state.x0.detach() - self.scale * gradient, state.eps.detach()


class Shifted(Hook):
    """Moves the transition's mean."""

    def __init__(self, by):
        self.by = by

    def transition(self, policy, state, sampler):
        gaussian = super().transition(policy, state, sampler)
        return Gaussian(gaussian.mean + self.by, gaussian.std)


class Halved(Hook):
    """Halves the noise of every step."""

    def propose(self, policy, state, gaussian):
        return super().propose(policy, state, Gaussian(gaussian.mean, gaussian.std / 2))


class Log(Hook):
    """Notes the calls it sees, and goes inside."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def predict(self, policy, state, sampler):
        self.calls.append(f"{self.name} predict")
        super().predict(policy, state, sampler)

    def after_step(self, policy, state):
        super().after_step(policy, state)
        self.calls.append(f"{self.name} after")


class Deaf(Hook):
    """Predicts without asking the hook inside."""

    replaces = ("predict",)

    def predict(self, policy, state, sampler):
        state.x0, state.eps = sampler.predict(policy, state.x, state.t, state.cond)


def test_a_hook_can_jump_and_the_record_follows():
    hook = Zigzag()
    state = Sampler(4, 1.0, steering=[hook])(Analytic(), [""], record=True)
    assert hook.path == [0, 1, 2, 1, 2, 3] and state.trajectory.t.shape == (1, 6)
    grid = Flow().timesteps(4)
    torch.testing.assert_close(state.trajectory.t[0], grid[[0, 1, 2, 1, 2, 3]])


def test_a_hook_can_take_the_gradient_in_x():
    draw = lambda *steering: Sampler(20, 1.0, steering=list(steering))(Analytic(), [""] * 64, seeds=list(range(64))).x
    guided, none = draw(Guided(3.0, 0.05)), draw(Guided(3.0, 0.0))
    assert (guided.mean() - draw().mean()) > 0.2 and torch.equal(none, draw())


@pytest.mark.parametrize("rule", [DDIM(0.0), DDIM(1.0), FlowSDE(0.7)], ids=["ode", "ddim", "sde"])
def test_a_hook_that_changes_nothing_leaves_every_bit(rule):
    plain = Sampler(5, 1.0, rule)(Analytic(), PROMPTS, **SEEDS).x
    assert torch.equal(Sampler(5, 1.0, rule, [Hook()])(Analytic(), PROMPTS, **SEEDS).x, plain)
    assert torch.equal(Sampler(5, 1.0, rule)(Analytic(), PROMPTS, hooks=[Hook(), Hook()], **SEEDS).x, plain)


def test_the_first_hook_is_the_outermost():
    calls = []
    Sampler(1, 1.0, steering=[Log(calls, "b"), Log(calls, "c")])(Analytic(), [""], hooks=[Log(calls, "a")])
    assert calls == ["a predict", "b predict", "c predict", "c after", "b after", "a after"]


def test_hooks_of_all_kinds_add_up():
    """Guidance moves the mean of a step as it does alone, and the shift is added."""
    x, t, s = torch.randn(3, 1, 2, 2), torch.full((3,), 0.5), torch.full((3,), 0.3)
    mean = lambda *steering: Sampler(2, 1.0, steering=list(steering)).gaussian(Analytic(), x, t, s, {})[0].mean
    for both in (mean(Guided(3.0, 0.05), Shifted(0.25)), mean(Shifted(0.25), Guided(3.0, 0.05))):
        torch.testing.assert_close(both, mean(Guided(3.0, 0.05)) + 0.25)
        assert not torch.allclose(both, mean(Shifted(0.25)))


def test_proposals_nest():
    """Two hooks that each halve the noise leave a quarter of it."""
    first = lambda *steering: Sampler(2, 1.0, DDIM(1.0), list(steering))(Analytic(), [""] * 4000, record=True).trajectory
    plain, quarter = first(), first(Halved(), Halved())
    spread = lambda t: (t.x_s - t.mean)[:, 0].std().item()
    assert spread(quarter) == pytest.approx(spread(plain) / 4, rel=0.05)


@pytest.mark.parametrize("steering", [[], [Guided(3.0, 0.05)], [Shifted(0.1)], [Shifted(0.1), Guided(3.0, 0.05)]], ids=len)
def test_a_recorded_step_evaluated_again_goes_through_the_hooks_that_drew_it(steering):
    sampler, policy = Sampler(6, 1.0, FlowSDE(0.7), steering), Analytic()
    trajectory = sampler(policy, [""] * 4, record=True).trajectory
    for i in range(6):
        m = trajectory.minibatch(torch.arange(4), torch.full((4,), i))
        gaussian, _, _ = sampler.gaussian(policy, m["x_t"], m["t"], m["s"], m["cond"])
        assert torch.equal(gaussian.log_prob(m["x_s"]), m["log_prob"])
    m = trajectory.minibatch(torch.tensor([0, 3, 1]), torch.tensor([0, 4, 2]))  # of different times
    gaussian, _, _ = sampler.gaussian(policy, m["x_t"], m["t"], m["s"], m["cond"])
    torch.testing.assert_close(gaussian.log_prob(m["x_s"]), m["log_prob"])


def test_gradient_flows_through_a_hook():
    """d/d bias of the sample under a shift is that of plain sampling where the shift is constant."""
    policy, x = Analytic(), torch.randn(3, 1, 2, 2)
    grads = []
    for steering in ([], [Hook(), Shifted(0.0)]):
        policy.bias.grad = None
        cond = {"c": torch.zeros(3, 1)}
        Sampler(4, 1.0, steering=steering)(policy, cond=cond, x=x, grad=all_steps(4)).x.square().sum().backward()
        grads.append(policy.bias.grad.clone())
    assert torch.equal(*grads) and grads[0].abs() > 0


def test_what_would_do_nothing_is_refused_by_name():
    with pytest.raises(ValueError, match="Deaf replaces `predict`, so Guided inside it would do nothing: leave one out"):
        Sampler(2, 1.0, steering=[Deaf(), Guided(3.0, 0.1)])(Analytic(), [""])
    Sampler(2, 1.0, steering=[Guided(3.0, 0.1), Deaf()])(Analytic(), [""])  # this way round both act
    Sampler(2, 1.0, steering=[Deaf(), Shifted(0.1)])(Analytic(), [""])
    twice = Shifted(0.1)
    with pytest.raises(ValueError, match="lists the same Shifted object twice"):
        Sampler(2, 1.0, steering=[twice, twice])(Analytic(), [""])
