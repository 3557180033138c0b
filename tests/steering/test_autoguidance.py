import pytest
import torch
from hooked import PROMPTS, at, draw, estimates, still
from parts import FAMILIES, LoRA, move, tiny

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Frozen
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.autoguidance import AutoGuidance
from lit_align.steering.cfgpp import CFGPlusPlus


@FAMILIES
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_it_leads_away_from_the_weak_model_under_the_same_prompt(family, w):
    """Around plain sampling, and around classifier-free guidance."""
    policy, weak = still(family), still(family, 0.3)
    x, t, s = at(policy)
    strong = policy.denoise(x, t, policy.condition(PROMPTS), w)
    away = policy.process.to_x0(weak.denoise(x, t, weak.condition(PROMPTS)), x, t)
    x0, eps = estimates(policy, x, t, s, AutoGuidance(weak, 2.5), w=w)
    want = away + 2.5 * (policy.process.to_x0(strong, x, t) - away)
    torch.testing.assert_close(x0, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(policy.process.add_noise(x0, eps, t), x, atol=1e-4, rtol=1e-4)


def test_weight_1_changes_nothing_to_the_last_bit():
    assert torch.equal(draw(still(), AutoGuidance(still(shift=0.3), 1.0)), draw(still()))


def test_a_trained_policy_leads_away_from_its_reference():
    policy, base = tiny(StableDiffusion, LoRA(rank=2)), tiny(StableDiffusion, LoRA(rank=2))
    move(policy, 0.3)
    torch.testing.assert_close(draw(policy, AutoGuidance(weight=2.0), w=1.0), draw(policy, AutoGuidance(base, 2.0), w=1.0))


def test_it_nests_with_another_rule():
    """CFG++ inside: its x_0-hat is led away from the weak model's, and so is its noise."""
    policy, weak = still(), still(shift=0.3)
    x, t, s = at(policy)
    inner, outer = (estimates(policy, x, t, s, *hooks, w=0.6) for hooks in ([CFGPlusPlus()], [AutoGuidance(weak, 2.0), CFGPlusPlus()]))
    pred = weak.denoise(x, t, weak.condition(PROMPTS))
    for got, before, away in zip(outer, inner, (policy.process.to_x0(pred, x, t), policy.process.to_eps(pred, x, t))):
        torch.testing.assert_close(got, 2 * before - away)


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="has no reference to lead away from: name a weaker model"):
        draw(still(), AutoGuidance())
    with pytest.raises(ValueError, match="latents of shape"):
        draw(still(), AutoGuidance(StableDiffusion("tiny", Frozen(), resolution=32)))
    noisier = StableDiffusion("tiny", Frozen(), scheduler={"beta_end": 0.02})
    with pytest.raises(ValueError, match="another noise schedule"):
        draw(still(), AutoGuidance(noisier))
    with pytest.raises(ValueError, match="another noise schedule"):
        draw(still(), AutoGuidance(still(StableDiffusion3)))
    assert Sampler(2, 1.0, steering=[AutoGuidance(noisier)]).modules() == [noisier]
