import pytest
import torch
from parts import Analytic

from lit_align.diffusion.process import Flow, Process
from lit_align.diffusion.sampler import Sampler, all_steps, last_k, random_steps
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM, FlowSDE

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip


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
    assert Sampler(7, 1.0)(Analytic(), [""] * 5).calls["nfe_forward"] == 7


def test_reindex_moves_everything_and_clones_part_ways():
    state = State(torch.arange(3.0).view(3, 1), {"c": torch.arange(3)}, ["a", "b", "c"])
    state.generators = [torch.Generator().manual_seed(i) for i in range(3)]
    state.columns, state.extras = {"include": [["x"], [], ["y", "z"]]}, {"deep": {"r": torch.tensor([5, 6, 7])}, "names": ["x", "y", "z"]}
    state.history = [{"x_t": torch.arange(3)}]
    state.reindex(torch.tensor([2, 2, 0, 1]))
    assert state.x.flatten().tolist() == [2, 2, 0, 1] and state.prompts == ["c", "c", "a", "b"]
    assert state.cond["c"].tolist() == [2, 2, 0, 1] and state.columns["include"] == [["y", "z"], ["y", "z"], ["x"], []]
    assert state.extras["deep"]["r"].tolist() == [7, 7, 5, 6] and state.extras["names"] == ["z", "z", "x", "y"]
    assert state.history[0]["x_t"].tolist() == [2, 2, 0, 1]
    noise = [torch.randn(4, generator=g) for g in state.generators]
    assert not torch.equal(noise[0], noise[1])


def test_copies_of_neighbouring_seeds_go_different_ways():
    """Four copies of each of the prompts seeded 0, 1, 2: twelve noise streams, the first of each the seed's own."""
    state = State(torch.zeros(3, 1), {}, generators=[torch.Generator().manual_seed(i) for i in range(3)])
    state.reindex(torch.arange(3).repeat_interleave(4))
    noise = [torch.randn(4, generator=g) for g in state.generators]
    assert len({tuple(n.tolist()) for n in noise}) == 12
    for i in range(3):
        own = torch.Generator().manual_seed(i)
        torch.randint(2**62, (3,), generator=own)  # a number for each further copy
        assert torch.equal(noise[4 * i], torch.randn(4, generator=own))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_neighbouring_seeds_share_nothing(eta):
    trajectory = Sampler(5, 1.0, DDIM(eta))(Analytic(), [""] * 8, seeds=list(range(8)), record=True).trajectory
    noise = torch.cat([trajectory.x_t[:, 0], *([(trajectory.x_s - trajectory.mean)[:, i] for i in range(4)] if eta else [])])
    values = noise.flatten().round(decimals=5)
    assert len(values.unique()) > 0.99 * len(values)
