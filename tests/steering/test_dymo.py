import pytest
import torch
import torch.nn.functional as F
from hooked import SEEDS, at, draw, started, still
from parts import BlackBox, Darkness

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.step_aware import StepAwarePreference
from lit_align.steering.dymo import DyMO, semantic, standardised
from lit_align.steering.phrases import Phrase

PROMPTS = ["a red dog and a blue cat", "a dog"]


def hook(reward=None, **kwargs):
    return DyMO(reward or Darkness(100.0), ["dog", "cat"], ["red", "blue"], **({"cell": 2, "rounds": 0.0, "late_rounds": 0.0} | kwargs))


def test_the_semantic_loss():
    maps = torch.rand(3, 4, 6)
    phrases = [Phrase([0], [[1], [2]]), Phrase([3, 4], [])]
    gap = lambda a, b: 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    want = (gap(maps[..., 0], maps[..., 1]) + gap(maps[..., 0], maps[..., 2])) / 2 - gap(maps[..., 0], maps[..., 3:5].mean(-1))
    torch.testing.assert_close(semantic(maps, phrases), want)
    assert semantic(maps, [Phrase([0], [])]) == 0
    x = standardised(torch.randn(2, 3, 8, 8) * 3 + 1)
    torch.testing.assert_close(x.var((2, 3)), torch.ones(2, 3), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["unet", "mm-dit"])
@pytest.mark.parametrize("i", [0, 3, 7])
def test_the_shift_is_the_gradient_with_guidances_size(family, i):
    """The three phases of ten steps: meaning, both, reward."""
    policy, mine = still(family), hook(early=0.2, late=0.6)
    x, t, s = at(policy)
    state, sampler = started(policy, mine, x.clone(), t, PROMPTS, steps=10, i=i, s=s)
    last = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    state.extras[mine]["x0"] = last.clone()
    with torch.no_grad():
        mine.predict(policy, state, sampler)
    leaf, cond = x.clone().requires_grad_(), policy.condition(PROMPTS)
    kept = []
    with policy.attention(record=lambda call: kept.append(call.words().mean(1)) if call.kind != "self" else None):
        of_cond = policy.denoise(leaf, t, cond)
    null = policy.denoise(leaf, t, policy.null(2))
    x0 = policy.process.to_x0(null + 3 * (of_cond - null), leaf, t)
    d = (standardised(x0) - standardised(last)).flatten(1).norm(dim=1) / standardised(last).flatten(1).norm(dim=1)
    d = d.detach()
    maps = torch.stack(kept).mean(0).unflatten(1, (4, 4))
    meaning = torch.stack([semantic(maps[p], state.extras[mine]["phrases"][p]) for p in range(2)])
    reward = Darkness(100.0)(policy.decode(x0), PROMPTS)
    loss = {0: 10 * meaning, 3: 10 * (1 - torch.exp(-d)) * meaning - torch.exp(-d) * reward, 7: -reward}[i]
    (gradient,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
    norm = lambda v: v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    rho = norm(of_cond - null) / norm(gradient) * (0.6 if i == 0 else 1.0)
    rho = torch.where(norm(gradient) > 0, rho, 0.0)  # the second prompt has one object and no attribute
    torch.testing.assert_close(state.extras[mine]["shift"], (-rho * gradient).detach(), atol=2e-3, rtol=2e-2)
    assert state.extras[mine]["shift"][0].abs().max() > 1e-2 and (i > 0 or not state.extras[mine]["shift"][1].any())
    torch.testing.assert_close(state.extras[mine]["x0"], x0.detach(), atol=1e-4, rtol=1e-4)
    plain = Sampler(10, 3.0, DDIM(0.0)).gaussian(policy, x, t, s, cond)[0].mean
    shifted = mine.transition(policy, state, sampler).mean
    torch.testing.assert_close(shifted - plain, state.extras[mine]["shift"], atol=1e-4, rtol=1e-3)


def test_strength_0_changes_nothing_to_the_last_bit():
    assert torch.equal(draw(still(), hook(strength=0.0), prompts=PROMPTS, eta=1.0), draw(still(), prompts=PROMPTS, eta=1.0))


def test_it_raises_the_reward_and_the_other_sign_lowers_it():
    policy = still()
    dark = lambda *hooks: Darkness()(policy.decode(draw(policy, *hooks, prompts=PROMPTS, steps=6, eta=1.0)), PROMPTS)
    assert (dark(hook(late=0.0, early=0.0)) > dark()).all() and (dark(hook(late=0.0, early=0.0, strength=-1.0)) < dark()).all()


def test_steps_are_taken_again_as_often_as_the_gradient_is_large():
    policy = still()
    x, t, s = at(policy)
    probe = hook(early=0.0, late=0.0)
    state, sampler = started(policy, probe, x.clone(), t, PROMPTS, s=s)
    with torch.no_grad():
        probe.predict(policy, state, sampler)
    norms = state.extras[probe]["norm"]
    rounds = (2.5 / norms[0]).item()  # int(2.5) = 2 times for the first sample
    again = int(rounds * norms[1])
    mine = hook(early=0.0, late=0.0, late_rounds=rounds)
    state, sampler = started(policy, mine, x.clone(), t, PROMPTS, s=s)
    state.generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    policy.calls.clear()
    with torch.no_grad():
        mine.before_step(policy, state, sampler)
    assert policy.calls["nfe_forward"] == 2 * (2 + 1 + max(again - 1, 0))  # one to measure; each further one predicts again
    moved = (state.x - x).flatten(1).abs().amax(1)
    assert moved[0] > 0 and (moved[1] > 0) == (again > 0)


def test_a_sample_depends_on_its_seed_alone():
    mine = hook(late=0.3, rounds=0.05, late_rounds=0.05)
    together = draw(still(), mine, prompts=PROMPTS, eta=1.0)
    for k in range(2):
        alone = draw(still(), mine, prompts=PROMPTS[k : k + 1], seeds=SEEDS[k : k + 1], eta=1.0)
        torch.testing.assert_close(alone[0], together[k], atol=2e-3, rtol=1e-2)


def test_with_spos_preference_model():
    got = draw(still(), hook(StepAwarePreference("tiny"), late=0.3), prompts=PROMPTS, eta=1.0)
    assert (got - draw(still(), prompts=PROMPTS, eta=1.0)).abs().max() > 1e-2


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="and guidance_scale is 1: set another"):
        draw(still(), hook(), prompts=PROMPTS, w=1.0)
    with pytest.raises(ValueError, match="DyMO needs the reward's gradient"):
        draw(still(), hook(BlackBox()), prompts=PROMPTS)
    with pytest.raises(ValueError, match=r"cell is 4; this denoiser's maps have \[2\]"):
        draw(still(), hook(cell=4), prompts=PROMPTS)
