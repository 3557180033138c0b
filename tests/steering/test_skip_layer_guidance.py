import pytest
import torch
from hooked import PROMPTS, at, draw, estimates, noise, still

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import FlowSDE
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.skip_layer_guidance import SkipLayerGuidance

STEPS = 8  # of which 1 to 3 lie between 0.01 and 0.4


def by_pipeline(policy, **kwargs):
    policy.pipe.set_progress_bar_config(disable=True)
    sizes = {"height": policy.height, "width": policy.width, "latents": noise(policy), "output_type": "latent"}
    return policy.pipe(PROMPTS, num_inference_steps=STEPS, guidance_scale=3.0, **sizes, **kwargs).images


def test_the_whole_run_is_that_of_diffusers():
    policy = still(StableDiffusion3)
    theirs = by_pipeline(policy, skip_guidance_layers=[1], skip_layer_guidance_scale=2.8, skip_layer_guidance_stop=0.4)
    ours = draw(policy, SkipLayerGuidance([1], stop=0.4), steps=STEPS, x=noise(policy))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - by_pipeline(policy)).abs().max() > 1e-3


def test_it_acts_in_its_steps_alone_and_costs_an_evaluation_in_each():
    policy, hook = still(StableDiffusion3), SkipLayerGuidance([0], stop=0.4)
    for i in range(STEPS):
        x, t, s = at(policy, i, STEPS)
        with_it, plain = (estimates(policy, x, t, s, *hooks, steps=STEPS) for hooks in ([hook], []))
        assert torch.equal(with_it[0], plain[0]) == (i not in (1, 2, 3))
    sampler = Sampler(STEPS, 3.0, steering=[hook])
    assert sampler(policy, PROMPTS).calls["nfe_forward"] == 2 * STEPS + 3 == sampler.nfe()
    assert Sampler(STEPS, 1.0, steering=[hook])(policy, PROMPTS).calls["nfe_forward"] == STEPS + 3


def test_a_recorded_step_is_evaluated_as_it_was_drawn():
    policy = still(StableDiffusion3)
    sampler = Sampler(STEPS, 3.0, FlowSDE(), [SkipLayerGuidance([0], stop=0.4)])
    path = sampler(policy, PROMPTS, seeds=[0, 1], record=True).trajectory
    rows, steps = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 2, 3, 6])
    step = path.minibatch(rows, steps)
    gaussian, _, _ = sampler.gaussian(policy, step["x_t"], step["t"], step["s"], step["cond"])
    torch.testing.assert_close(gaussian.log_prob(step["x_s"]), step["log_prob"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hook,said", [
    (SkipLayerGuidance(), "there is no block 7; the denoiser has 0 to 1"),
    (SkipLayerGuidance([1], stop=0.1), "does nothing: no step i of 8 has 0.01 x 8 < i < 0.1 x 8"),
])  # fmt: skip
def test_what_would_do_nothing_is_refused(hook, said):
    with pytest.raises(ValueError, match=said):
        draw(still(StableDiffusion3), hook, steps=STEPS)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="no blocks of a StableDiffusion; it is for StableDiffusion3"):
        draw(still(), SkipLayerGuidance([0]))
