import pytest
import torch
from parts import Analytic, Level

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.diffusion.transition import DDIM
from lit_align.rewards.step_reward import StepReward
from lit_align.steering.lookahead import put_where
from lit_align.steering.svdd import SVDD

SEEDS = [3, 4, 5]


class Latents(StepReward):
    needs_x0 = False

    def forward(self, policy, x_t, x_0, t, prompts):
        assert x_0 is None and len(t) == len(x_t) == len(prompts)
        return x_t.flatten(1).sum(1)


def sampler(*hooks, steps=6):
    return Sampler(steps, 1.0, DDIM(1.0), list(hooks))


@pytest.mark.parametrize("hook", [SVDD(Level(), candidates=1), SVDD(value=Latents(), candidates=1)])
def test_one_candidate_is_plain_sampling_to_the_last_bit(hook):
    assert torch.equal(sampler(hook)(Analytic(), [""] * 3, seeds=SEEDS).x, sampler()(Analytic(), [""] * 3, seeds=SEEDS).x)


@pytest.mark.parametrize("mc", [False, True], ids=["pm", "mc"])
def test_each_step_takes_the_best_of_its_candidates(mc):
    """Against a loop that knows nothing of hooks."""
    policy, m, rule = Analytic(), 4, DDIM(1.0)
    grid = policy.process.timesteps(6)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    x = randn_like(torch.empty(3, 1, 2, 2), generators)

    def estimate(x, i):
        t = grid[i].expand(3)
        pred = policy.denoise(x, t, {}).detach()
        return policy.process.to_x0(pred, x, t), policy.process.to_eps(pred, x, t)

    for i in range(6):
        g = rule(policy.process, x, *estimate(x, i), grid[i].expand(3), grid[i + 1].expand(3))
        if i == 5:
            x = g.mean
            break
        drawn = [g.sample(randn_like(x, generators)) for _ in range(m)]
        value = torch.stack([d.flatten(1).sum(1) if mc else estimate(d, i + 1)[0].flatten(1).mean(1) for d in drawn])
        x = torch.stack(drawn)[value.argmax(0), torch.arange(3)]
    hook = SVDD(value=Latents(), candidates=m) if mc else SVDD(Level(), candidates=m)
    torch.testing.assert_close(sampler(hook)(Analytic(), [""] * 3, seeds=SEEDS).x, x)


def test_alpha_draws_a_candidate_by_its_weight():
    """One step's choice between two candidates of values 0 and 1: exp(1 / alpha) / (1 + exp(1 / alpha))."""

    class Two(SVDD):
        def candidate(self, policy, state, gaussian, rows):
            found = super().candidate(policy, state, gaussian, rows)
            self.count = getattr(self, "count", 0) + 1
            found["value"] = torch.full_like(found["value"], float(self.count % 2 == 0))
            return found

    hook, n, taken = Two(Level(), candidates=2, alpha=1.0), 4000, []

    class Taken(Hook):
        def after_step(self, policy, state):
            super().after_step(policy, state)
            if state.i == 0:
                taken.append(state.extras[hook]["value"].mean().item())

    sampler(Taken(), hook, steps=3)(Analytic(), [""] * n, seeds=list(range(n)))
    assert taken[0] == pytest.approx(0.731, abs=0.03)


def test_more_candidates_give_more_reward():
    means = [sampler(SVDD(Level(), candidates=m))(Analytic(), [""] * 64, seeds=list(range(64))).x.mean() for m in (1, 2, 4, 8, 16)]
    assert all(b > a for a, b in zip(means, means[1:]))


@pytest.mark.parametrize("outer", [True, False], ids=["outside", "inside"])
def test_a_reused_estimate_is_what_the_next_step_would_compute(outer):
    """Also where another hook changes estimates, outside or inside of it."""

    class Bent(Hook):
        def predict(self, policy, state, sampler):
            super().predict(policy, state, sampler)
            state.eps = 0.9 * state.eps + 0.1 * state.x
            state.extras[self] = {"of": state.x}

        def transition(self, policy, state, sampler):
            assert torch.equal(state.extras[self]["of"], state.x)
            return super().transition(policy, state, sampler)

    class Afresh(SVDD):
        def take(self, state, found):
            return super().take(state, found | {"known": None})

    def run(cls):
        hooks = [Bent(), cls(Level(), candidates=3)]
        return sampler(*(hooks if outer else hooks[::-1]))(Analytic(), [""] * 3, seeds=SEEDS)

    reused, afresh = run(SVDD), run(Afresh)
    assert torch.equal(reused.x, afresh.x) and afresh.calls["nfe_forward"] - reused.calls["nfe_forward"] == 5


def test_rows_are_replaced_where_the_new_ones_are_better():
    old = {"x": torch.zeros(4, 2), "names": ["a", "b", "c", "d"], "same": None, "in": {"y": torch.arange(4)}}
    new = {"x": torch.ones(2, 2), "names": ["e", "f"], "same": None, "in": {"y": torch.tensor([10, 20])}}
    got = put_where(torch.tensor([False, True]), torch.tensor([1, 3]), old, new)
    assert got["x"].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]] and got["names"] == ["a", "b", "c", "f"]
    assert got["in"]["y"].tolist() == [0, 1, 2, 20] and got["same"] is None


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="SVDD chooses among draws of a step, and this sampler's steps have no noise"):
        Sampler(6, 1.0, DDIM(0.0), [SVDD(Level())])(Analytic(), [""])
    for given in ({}, {"reward": Level(), "value": Latents()}):
        with pytest.raises(ValueError, match="SVDD takes a reward or a value network: give one of the two"):
            SVDD(**given)
    with pytest.raises(ValueError, match="candidates is 1 or more"):
        SVDD(Level(), candidates=0)
