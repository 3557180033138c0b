import pytest
import torch
from hooked import PROMPTS, at, by_diffusers, draw, estimates, still
from scipy.ndimage import gaussian_filter

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.sag import SAG, blurred


def test_the_blur_is_a_gaussian():
    x = torch.rand(2, 3, 12, 16)
    want = torch.as_tensor(gaussian_filter(x.double().numpy(), 1.0, mode="mirror", radius=4, axes=(2, 3)))
    torch.testing.assert_close(blurred(x, 1.0).double(), want, atol=1e-5, rtol=1e-5)
    assert blurred(torch.rand(1, 1, 3, 5), 1.0).shape == (1, 1, 3, 5)


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_whole_run_is_that_of_diffusers(w):
    from diffusers import StableDiffusionSAGPipeline

    policy = still()
    want = by_diffusers(StableDiffusionSAGPipeline, policy, w=w, sag_scale=2.0)
    assert (want - draw(policy, w=w)).abs().max() > 1e-2
    torch.testing.assert_close(draw(policy, SAG(2.0), w=w), want, atol=2e-3, rtol=1e-2)


def test_in_a_flow_the_gap_is_of_velocities():
    policy = still(StableDiffusion3)
    x, t, s = at(policy)
    null = policy.denoise(x, t, policy.null(2))
    x0, eps = policy.process.to_x0(null, x, t), policy.process.to_eps(null, x, t)
    degraded = policy.process.add_noise(blurred(x0, 1.0), eps, t)  # with threshold 0 all of it is blurred
    worse = policy.denoise(degraded, t, policy.null(2))
    want = policy.denoise(x, t, policy.condition(PROMPTS), 3.0) + 0.75 * (null - worse)
    got, _ = estimates(policy, x, t, s, SAG(threshold=0.0, layer="blocks.1"))
    torch.testing.assert_close(got, policy.process.to_x0(want, x, t), atol=1e-4, rtol=1e-4)


def test_scale_0_and_a_threshold_that_nothing_passes_change_nothing():
    assert torch.equal(draw(still(), SAG(0.0)), draw(still()))
    torch.testing.assert_close(draw(still(), SAG(0.75, threshold=100.0)), draw(still()), atol=1e-3, rtol=1e-3)
    assert Sampler(4, 3.0, steering=[SAG()])(still(), PROMPTS).calls["nfe_forward"] == 3 * 4


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="SAG: no self-attention layer is called down_blocks.0"):
        draw(still(), SAG(layer="down_blocks.0"))
