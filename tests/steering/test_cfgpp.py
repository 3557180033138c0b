import pytest
import torch
from hooked import at, draw, estimates, still
from parts import FAMILIES

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import FlowSDE
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.cfgpp import CFGPlusPlus


@FAMILIES
@pytest.mark.parametrize("lmbda", [0.6, 1.0])
def test_x0_is_interpolated_and_the_noise_is_unconditional(family, lmbda):
    policy = still(family)
    x, t, s = at(policy)
    null, cond = policy.denoise(x, t, policy.null(2)), policy.denoise(x, t, policy.condition(["a red circle", "b"]))
    x0, eps = estimates(policy, x, t, s, CFGPlusPlus(), w=lmbda)
    assert not torch.allclose(null, cond, atol=1e-3)
    torch.testing.assert_close(x0, policy.process.to_x0(null + lmbda * (cond - null), x, t))
    torch.testing.assert_close(eps, policy.process.to_eps(null, x, t))


@FAMILIES
def test_lambda_0_is_unconditional_sampling(family):
    policy = still(family)
    torch.testing.assert_close(draw(policy, CFGPlusPlus(), w=0.0), draw(policy, w=1.0, prompts=["", ""]))


def test_with_equal_predictions_lambda_1_is_plain_sampling():
    policy = still()
    empty = ["", ""]
    torch.testing.assert_close(draw(policy, CFGPlusPlus(), w=1.0, prompts=empty), draw(policy, w=1.0, prompts=empty))


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"lambda, a number in \[0, 1\]; it is 7.5"):
        draw(still(), CFGPlusPlus(), w=7.5)
    with pytest.raises(ValueError, match="which FlowSDE does not: use DDIM"):
        Sampler(4, 0.6, FlowSDE(), [CFGPlusPlus()])(still(StableDiffusion3), ["a"])
