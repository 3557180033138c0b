import copy

import pytest
import torch
from hooked import PROMPTS, at, draw, estimates, still
from parts import ADAPTERS, FAMILIES, move, tiny

from lit_align.diffusion.sampler import Sampler
from lit_align.steering.negative_branch import NegativeBranch


@ADAPTERS
@FAMILIES
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_guidance_leads_from_the_policys_null_prediction_to_the_references(family, adapter, w):
    policy, base = tiny(family, adapter), tiny(family, adapter)
    policy.add_reference()
    move(policy, 0.3)
    x, cond = torch.randn(2, *policy.latent_shape), policy.condition(["a", "b"])
    t, s = policy.process.timesteps(10)[[3, 4]].float()[:, None].expand(2, 2)
    with torch.no_grad():
        _, x0, eps = Sampler(10, w, steering=[NegativeBranch()]).gaussian(policy, x, t, s, cond)
        negative, positive = policy.denoise(x, t, policy.null(2)), base.denoise(x, t, cond)
        want = negative + w * (positive - negative)
    assert not torch.allclose(negative, base.denoise(x, t, base.null(2)), atol=1e-3)
    torch.testing.assert_close(x0, policy.process.to_x0(want, x, t), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(eps, policy.process.to_eps(want, x, t), atol=1e-4, rtol=1e-4)


def test_without_guidance_it_is_refused():
    with pytest.raises(ValueError, match="with guidance_scale 1 it does nothing"):
        Sampler(2, 1.0, steering=[NegativeBranch()])(tiny(), ["a"])


@FAMILIES
def test_a_second_policy_is_the_negative_one(family):
    policy, negative = still(family), still(family, 0.3)
    x, t, s = at(policy)
    null, cond = negative.denoise(x, t, negative.null(2)), policy.denoise(x, t, policy.condition(PROMPTS))
    x0, _ = estimates(policy, x, t, s, NegativeBranch(negative))
    torch.testing.assert_close(x0, policy.process.to_x0(null + 3 * (cond - null), x, t), atol=1e-4, rtol=1e-4)
    assert torch.equal(draw(policy, NegativeBranch(copy.deepcopy(negative), still(family, 0.2), 1.0)), draw(policy, NegativeBranch(negative)))


def test_the_negative_policy_takes_the_positive_ones_offset_once():
    weights = lambda policy: policy.denoiser.conv_in.weight
    positive, base, negative = still(shift=0.1), still(), copy.deepcopy(still(shift=0.3))
    before, hook = weights(negative).clone(), NegativeBranch(negative, base, 0.25)
    for _ in range(2):
        draw(positive, hook)
    torch.testing.assert_close(weights(negative), before + 0.75 * (weights(positive) - weights(base)))


def test_what_it_needs():
    with pytest.raises(ValueError, match="has no reference: name a negative policy"):
        draw(still(), NegativeBranch())
    with pytest.raises(ValueError, match="base moves the negative policy: name one"):
        NegativeBranch(base=still())
