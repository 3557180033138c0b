"""What every method of search and of particles has in common."""

import pytest
import torch
from parts import Analytic, Level, tiny

from lit_align.diffusion.budget import Budget
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Frozen
from lit_align.rewards.step_reward import StepReward
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.budget_forcing import BudgetForcing
from lit_align.steering.das import DAS
from lit_align.steering.demon import Demon
from lit_align.steering.dsearch import DSearch
from lit_align.steering.evo_search import EvoSearch
from lit_align.steering.fk_steering import FKSteering
from lit_align.steering.path_search import PathSearch
from lit_align.steering.random_search import RandomSearch
from lit_align.steering.rejection import RejectionSampling
from lit_align.steering.spectral_search import SpectralSearch
from lit_align.steering.svdd import SVDD
from lit_align.steering.tree_sampling import TreeSampling
from lit_align.steering.zero_order import ZeroOrderSearch

STEPS = 6


class Sum(StepReward):
    """A value of the latents themselves."""

    needs_x0 = False

    def forward(self, policy, x_t, x_0, t, prompts):
        return x_t.flatten(1).sum(1)


def inside(*steering, eta=1.0, **kwargs):
    return Sampler(STEPS, 1.0, DDIM(eta), list(steering), **kwargs)


HOOKS = {  # and predictions that a prompt takes in 6 steps
    "fk": (lambda: FKSteering(Level(), 3, 5.0), 3 * 6),
    "das": (lambda: DAS(Level(), 3, 0.2), 2 * 3 * 6),
    "svdd_pm": (lambda: SVDD(Level(), candidates=3, alpha=0.1), 1 + 3 * 5),
    "svdd_mc": (lambda: SVDD(value=Sum(), candidates=3), 6),
    "dsearch": (lambda: DSearch(Level(), candidates=2, beam=4, width=2.0, search="all"), 4 + 16 + 16 + 15 + 16 + 16),
    "dsearch_r": (lambda: DSearch(Level(), candidates=2, beam=4, width=1.0, search="all", replace=0.25), 4 + 4 * 2 * 5),
    "demon": (lambda: Demon(Level(), 4), 6 + 4 * 5),
    "budget_forcing": (lambda: BudgetForcing(Level(), 30, 4), 30),
}
OUTER = {
    "best_of_n": (lambda s: BestOfN(Level(), 3, s), 3 * 6),
    "random": (lambda s: RandomSearch(Level(), 3, s), 3 * 6),
    "zero_order": (lambda s: ZeroOrderSearch(Level(), 2, 3, sampler=s), 7 * 6),
    "path": (lambda s: PathSearch(Level(), 2, 3, 0.34, 0.2, 0.5, s), 2 * 2 + 6 * (3 + 3)),
    "evo": (lambda s: EvoSearch(Level(), [0.0, 0.5], [4, 3, 5], 2, sampler=s), 4 * 6 + 3 * 6 + 5 * 3),
    "spectral": (lambda s: SpectralSearch(Level(), 5, 2, 2, 1, s), 5 * 6),
}
ADAPTIVE = {
    "rejection": lambda s: RejectionSampling(Level(), 0.5, 4.0, 8, s),
    "tree": lambda s: TreeSampling(Level(), 8, 5.0, sampler=s),
    "tree_sample": lambda s: TreeSampling(Level(), 8, 5.0, "sample", sampler=s),
}
DETERMINISTIC = ("zero_order", "spectral")  # of these the flow's first stochastic step would forget x_T


def build(name, **kwargs):
    if name in HOOKS:
        return inside(HOOKS[name][0](), **kwargs)
    make = ADAPTIVE[name] if name in ADAPTIVE else OUTER[name][0]
    return make(inside(eta=0.0 if name in DETERMINISTIC else 1.0, **kwargs))


EVERY = pytest.mark.parametrize("name", [*HOOKS, *OUTER, *ADAPTIVE])
pytestmark = pytest.mark.filterwarnings("ignore:RejectionSampling accepted none")
SEEDS = [3, 4, 5]


def run(sampler, seeds=SEEDS, policy=None):
    torch.manual_seed(0)
    return sampler(policy or Analytic(), [f"p{s}" for s in seeds], seeds=list(seeds))


@EVERY
def test_a_prompts_sample_depends_on_nothing_else_in_the_batch(name):
    together = run(build(name))
    assert together.prompts == ["p3", "p4", "p5"] and together.x.shape == (3, 1, 2, 2)
    for i, seed in enumerate(SEEDS):
        torch.manual_seed(seed)  # nor on the global random numbers
        assert torch.equal(run(build(name), [seed]).x[0], together.x[i])


@EVERY
@pytest.mark.parametrize("minibatch", [1, 2, 64])
def test_minibatches_change_no_bit(name, minibatch):
    assert torch.equal(run(build(name, minibatch=minibatch)).x, run(build(name)).x)


@EVERY
def test_the_network_and_the_decoder_never_see_more_than_a_minibatch(name):
    policy, sizes = Analytic(), []
    denoise, decode = policy.denoise, policy.decode
    policy.denoise = lambda x, *args: sizes.append(len(x)) or denoise(x, *args)
    policy.decode = lambda z: sizes.append(len(z)) or decode(z)
    run(build(name), policy=policy)
    assert max(sizes) == 3


@EVERY
def test_the_reward_rises(name):
    plain = run(inside(eta=0.0 if name in DETERMINISTIC else 1.0), range(24)).x.mean()
    assert run(build(name), range(24)).x.mean() > plain + 0.02


@pytest.mark.parametrize("name,nfe", [(k, v[1]) for k, v in (HOOKS | OUTER).items()])
def test_cost_in_closed_form(name, nfe):
    sampler = build(name)
    calls = run(sampler).calls
    assert calls["nfe_forward"] + calls["nfe_backward"] == nfe
    assert calls["decodes"] == calls["reward_calls"] or name == "svdd_mc"
    if name in HOOKS or name == "path":
        assert sampler.nfe() == nfe


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_beyond_the_budget_is_refused_before_the_first_step(name):
    nfe, policy = HOOKS[name][1], Analytic()
    run(build(name, max_nfe=nfe), policy=policy)
    policy.calls.clear()
    with pytest.raises(ValueError, match=f"max_nfe is {nfe - 1} and a run of this sampler takes {nfe} network evaluations"):
        run(build(name, max_nfe=nfe - 1), policy=policy)
    assert not policy.calls


@pytest.mark.parametrize("name", [*OUTER, *ADAPTIVE])
def test_a_search_ends_at_its_budget(name):
    whole = run(build(name)).calls["nfe_forward"]
    if name == "path":
        return
    for budget in (6, 13, 20):
        sampler = build(name)
        sampler.max_nfe = budget
        calls = run(sampler).calls["nfe_forward"]
        assert 6 <= calls <= min(budget, whole) and (calls > budget - 6 or name in ADAPTIVE)
    sampler.max_nfe = 5
    with pytest.raises(ValueError, match="max_nfe is 5, and it takes at least 6: raise it"):
        run(sampler)


def test_a_hook_that_does_not_know_its_cost_is_stopped():
    class Again(FKSteering):
        def nfe(self, inside, steps):
            return inside

    with pytest.raises(ValueError, match="max_nfe is 10 and step 4 of 6 has brought the network evaluations per prompt to 12"):
        run(inside(Again(Level(), 3, 5.0), max_nfe=10))


@EVERY
def test_best_of_n_goes_around_it(name):
    one, policy = build(name), Analytic()
    two = run(BestOfN(Level(), 2, one), policy=policy)
    assert (two.x.mean((1, 2, 3)) >= run(one).x.mean((1, 2, 3)) - 1e-6).all()


@pytest.mark.parametrize("name", [n for n in HOOKS if n not in ("das",)])
def test_steps_without_noise_are_refused(name):
    with pytest.raises(ValueError, match="noise"):
        run(inside(HOOKS[name][0](), eta=0.0))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_noise_that_is_forgotten_is_not_searched(name):
    with pytest.raises(ValueError, match="searches over the initial noise, which this sampler's first step replaces"):
        run(OUTER[name][0](inside(eta=1.0)))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_noise_of_a_one_step_model_is_searched(name):
    """Its only step ends in x_0-hat(x_T), which depends on x_T."""
    assert not Sampler(1, 1.0).forgets_noise(Analytic())
    assert OUTER[name][0](Sampler(1, 1.0))(Analytic(), [""]).x.isfinite().all()


@pytest.mark.parametrize("name", [n if n in ("dsearch_r", "path") else pytest.param(n, marks=pytest.mark.slow) for n in (*HOOKS, *OUTER, *ADAPTIVE)])
def test_it_runs_on_a_network_with_guidance(name):
    policy = tiny(adapter=Frozen())
    eta, make = 0.0 if name in DETERMINISTIC else 1.0, HOOKS.get(name) or OUTER.get(name) or (ADAPTIVE.get(name),)
    sampler = Sampler(3, 2.0, DDIM(eta), [make[0]()] if name in HOOKS else None)
    sampler = sampler if name in HOOKS else make[0](sampler)
    state = sampler(policy, ["a", "b"], seeds=[0, 1])
    assert state.x.shape == (2, *policy.latent_shape) and state.x.isfinite().all()
    assert state.calls["nfe_forward"] >= 6 and Budget(policy, 2).calls() == {}


def test_guidance_counts_two_forwards_and_gradients_count():
    policy = tiny(adapter=Frozen())
    calls = Sampler(3, 2.0, DDIM(1.0), [DAS(Level(), 2, 1.0)])(policy, ["a", "b"], seeds=[0, 1]).calls
    assert calls["nfe_forward"] == calls["nfe_backward"] == 2 * 2 * 3
    assert calls["decodes"] == calls["reward_calls"] == 2 * 3 + 2  # each step, and the finished samples
