from collections import Counter

import pytest
import torch
from parts import Analytic, tiny

from lit_align.diffusion.budget import Budget
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.state import State
from lit_align.policies.adapters import LoRA


class Policy:
    def __init__(self):
        self.calls = Counter(nfe_forward=100)


def test_calls_are_counted_from_the_beginning_and_per_prompt():
    policy = Policy()
    budget = Budget(policy, 4, 10)
    policy.calls.update(nfe_forward=20, nfe_backward=8, decodes=4)
    assert budget.calls() == {"nfe_forward": 5, "nfe_backward": 2, "decodes": 1} and budget.nfe == 7
    assert budget.allows(3) and not budget.allows(4) and Budget(policy, 4).allows(1e9)
    assert budget.allows(10, 0) and not budget.allows(1, 10)


def test_forwards_and_backwards_of_a_network():
    policy, t = tiny(adapter=LoRA(2)), torch.tensor([500, 400])
    x, cond = torch.randn(2, *policy.latent_shape, requires_grad=True), policy.condition(["a", "b"])
    policy.denoise(x, t, cond).sum().backward()
    assert policy.calls == {"nfe_forward": 2, "nfe_backward": 2}
    policy.denoise(x, t, cond, 3.0).sum().backward()  # guidance: two predictions each
    assert policy.calls == {"nfe_forward": 6, "nfe_backward": 6}
    with torch.no_grad():
        policy.denoise(x, t, cond)
    policy.denoise(x, t, cond)  # nothing goes back through it
    assert policy.calls == {"nfe_forward": 10, "nfe_backward": 6}


def test_what_backward_recomputes_counts_as_forward():
    policy = tiny(adapter=LoRA(2))
    state = Sampler(3, 1.0)(policy, ["a"], seeds=[0], grad=all_steps(3))
    assert state.calls == {"nfe_forward": 3}
    state.x.sum().backward()
    assert policy.calls["nfe_forward"] == 6 and policy.calls["nfe_backward"] == 3


def test_a_run_of_some_steps_is_a_part_of_the_run():
    whole = Sampler(6, 1.0)(Analytic(), ["a", "b"], seeds=[0, 1])
    sampler, start = Sampler(6, 1.0), Sampler(6, 1.0)
    state = State(torch.stack([torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]), {"c": torch.zeros(2, 1)})
    half = sampler.run(Analytic(), state, last=3)
    assert half.calls["nfe_forward"] == 3 and not torch.equal(half.x, whole.x)
    assert torch.equal(start.run(Analytic(), half, first=3).x, whole.x)


def test_estimates_in_parts_keep_what_hooks_note():
    class Notes(Hook):
        def on_init(self, policy, state):
            state.extras[self] = {"x": state.x, "names": list(state.prompts), "n": 3}

        def predict(self, policy, state, sampler):
            super().predict(policy, state, sampler)
            state.extras[self]["x"] = 2 * state.x
            sizes.append(len(state.x))

    sizes, hook, prompts = [], Notes(), [f"p{i}" for i in range(5)]
    state = Sampler(1, 1.0, steering=[hook], minibatch=2)(Analytic(), prompts, seeds=list(range(5)))
    noise = torch.stack([torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(s)) for s in range(5)])
    assert sizes == [2, 2, 1] and torch.equal(state.extras[hook]["x"], 2 * noise)
    assert state.extras[hook]["names"] == prompts and state.extras[hook]["n"] == 3
    assert torch.equal(state.x, Sampler(1, 1.0)(Analytic(), prompts, seeds=list(range(5))).x)


def test_a_plain_run_beyond_the_budget():
    with pytest.raises(ValueError, match="max_nfe is 11 and a run of this sampler takes 12 network evaluations per prompt"):
        Sampler(6, 2.0, max_nfe=11)(Analytic(), ["a"])
    assert Sampler(6, 1.0, max_nfe=6)(Analytic(), ["a"]).calls == {"nfe_forward": 6}
