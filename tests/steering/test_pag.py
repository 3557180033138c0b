import pytest
import torch
from hooked import PROMPTS, at, by_diffusers, draw, estimates, still

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Frozen
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.policies.z_image import ZImage
from lit_align.steering.cfgpp import CFGPlusPlus
from lit_align.steering.pag import PAG


def by_hand(policy, x, t, processor, layer):
    """The perturbed prediction, with diffusers' own processor in the layers whose name contains `layer`."""
    before = dict(policy.denoiser.attn_processors)
    policy.denoiser.set_attn_processor({name: processor if layer in name else p for name, p in before.items()})
    pred = policy.denoise(x, t, policy.condition(PROMPTS))
    policy.denoiser.set_attn_processor(before)
    return pred


@pytest.mark.parametrize("family", [type(still()), StableDiffusionXL], ids=["sd", "sdxl"])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_papers_equation_with_diffusers_identity_processor(family, w):
    from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0

    class Both(PAGIdentitySelfAttnProcessor2_0):  # it perturbs the second half of a batch
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return super().__call__(attn, torch.cat([hidden_states, hidden_states]), *args, **kwargs).chunk(2)[1]

    policy = still(family)
    x, t, s = at(policy)
    plain, cond = policy.denoise(x, t, policy.condition(PROMPTS), w), policy.denoise(x, t, policy.condition(PROMPTS))
    perturbed = by_hand(policy, x, t, Both(), "mid_block.attentions.0.transformer_blocks.0.attn1")
    x0, eps = estimates(policy, x, t, s, PAG(2.0), w=w)
    want = plain + 2 * (cond - perturbed)
    assert (cond - perturbed).abs().max() > 1e-4
    torch.testing.assert_close(x0, policy.process.to_x0(want, x, t), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(eps, policy.process.to_eps(want, x, t), atol=1e-4, rtol=1e-4)


def test_in_an_mm_dit_image_tokens_see_themselves_and_the_text():
    from diffusers.models.attention_processor import PAGJointAttnProcessor2_0

    class Both(PAGJointAttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            twice = (torch.cat([v, v]) for v in (hidden_states, encoder_hidden_states))
            return tuple(v.chunk(2)[1] for v in super().__call__(attn, *twice))

    policy = still(StableDiffusion3)
    x, t, s = at(policy)
    cond, perturbed = policy.denoise(x, t, policy.condition(PROMPTS)), by_hand(policy, x, t, Both(), "transformer_blocks.0.attn")
    x0, _ = estimates(policy, x, t, s, PAG(2.0, ["blocks.0"]), w=1.0)
    assert (cond - perturbed).abs().max() > 1e-4
    torch.testing.assert_close(x0, policy.process.to_x0(cond + 2 * (cond - perturbed), x, t), atol=1e-4, rtol=1e-4)


def test_the_whole_run_is_that_of_diffusers():
    from diffusers import StableDiffusionPAGPipeline

    class Pipeline(StableDiffusionPAGPipeline):
        def __init__(self, vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder=None, requires_safety_checker=False):
            super().__init__(vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder, False, "mid")

    policy = still()
    want = by_diffusers(Pipeline, policy, pag_scale=3.0, pag_adaptive_scale=0.004)
    torch.testing.assert_close(draw(policy, PAG(3.0, fade=0.004)), want, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("family,layer", [(type(still()), "mid"), (StableDiffusion3, "blocks.0")], ids=["sd", "sd3"])
def test_scale_0_changes_nothing_to_the_last_bit(family, layer):
    assert torch.equal(draw(still(family), PAG(0.0, [layer])), draw(still(family)))


def test_it_nests_and_costs_one_evaluation_a_step():
    policy = still()
    x, t, s = at(policy)
    inner, outer, alone = (estimates(policy, x, t, s, *hooks, w=0.6) for hooks in ([CFGPlusPlus()], [PAG(2.0), CFGPlusPlus()], [PAG(2.0)]))
    plain = estimates(policy, x, t, s, w=0.6)
    for k in range(2):  # it adds to what lies inside what it adds to plain sampling
        torch.testing.assert_close(outer[k] - inner[k], alone[k] - plain[k], atol=1e-4, rtol=1e-3)
    assert Sampler(4, 3.0, steering=[PAG(2.0)])(policy, PROMPTS).calls["nfe_forward"] == 3 * 4


def test_unknown_layers_and_families_are_refused():
    with pytest.raises(ValueError, match="no self-attention layer is called blocks.7; there are transformer_blocks.0.attn"):
        draw(still(StableDiffusion3), PAG(1.0, ["blocks.7"]))
    with pytest.raises(ValueError, match="PAG reads attention, which is not known of ZImage"):
        draw(ZImage("tiny", Frozen()), PAG(1.0))
