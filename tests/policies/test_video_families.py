"""Every family of videos, and of image editors, against its own diffusers pipeline: samples of the same noise, LoRA weights, encode and decode."""

from unittest import mock

import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from peft import PeftModel
from video_families import BLOCKS, EDITS, VIDEOS

from lit_align.diffusion.sampler import Sampler
from lit_align.policies import tiny, tiny_videos
from lit_align.policies.adapters import Frozen, LoRA
from lit_align.policies.animate_diff import AnimateDiff
from lit_align.policies.cogvideox import CogVideoX
from lit_align.policies.editing import to_pil
from lit_align.policies.hunyuan_video import HunyuanVideo, HunyuanVideo15
from lit_align.policies.instruct_pix2pix import InstructPix2Pix
from lit_align.policies.ltx_video import LTXVideo
from lit_align.policies.model_scope import ModelScopeT2V
from lit_align.policies.qwen_image_edit import QwenImageEdit, QwenImageEditPlus

PROMPTS = ["a red circle", "two blue squares, and a star"]  # of different length
FAMILIES = VIDEOS | EDITS


@pytest.fixture(params=FAMILIES, ids=lambda c: c.__name__)
def family(request):
    return request.param


def make(family, adapter=None, pretrained="tiny", **kwargs):
    policy = family(pretrained, adapter or Frozen(), **FAMILIES[family][0] | kwargs)
    policy.pipe.set_progress_bar_config(disable=True)
    if family is HunyuanVideo15:
        tiny_videos.shorten(policy.pipe)  # of what was saved and loaded, too
    return policy


def noise(policy):
    return torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))


def rows(policy):
    images = torch.rand(2, 3, policy.height, policy.width, generator=torch.Generator().manual_seed(6))
    return {name: [(image * 255).round() / 255 for image in images] for name in policy.reads}  # in 8 bits, as PIL's


def by_pipeline(pipe, policy, w, steps=4):
    """Row by row: several of these pipelines take one prompt only."""
    family, x, columns, out = type(policy), noise(policy), rows(policy), []
    if family is HunyuanVideo15:
        pipe.guider = ClassifierFreeGuidance(guidance_scale=w, enabled=w != 1)
    size = {} if family is InstructPix2Pix else {"height": policy.height, "width": policy.width}
    size |= {"num_frames": policy.num_frames} if family in VIDEOS else {}
    size |= {"max_sequence_length": policy.max_sequence_length} if hasattr(policy, "max_sequence_length") else {}
    for i, prompt in enumerate(PROMPTS):
        image = {"image": to_pil(columns["source"][i])} if family in EDITS else {}
        made = pipe(prompt=[prompt], num_inference_steps=steps, output_type="pt", **size, **image, **FAMILIES[family][1](x[i : i + 1], w))
        out.append(torch.as_tensor(made.frames if family in VIDEOS else made.images))
    return torch.cat(out)


def by_us(policy, w, steps=4):
    with torch.no_grad():
        return policy.decode(Sampler(steps, w)(policy, PROMPTS, columns=rows(policy), x=noise(policy)).x)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=0)


@pytest.fixture(autouse=True)
def small_pictures():
    """The pipelines of Qwen-Image-Edit resize images to 1024^2 pixels: here they leave them as they are."""
    as_it_is = lambda area, ratio: (48, 32)
    with (
        mock.patch.object(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (48, 32, None)),
        mock.patch.object(pipeline_qwenimage_edit_plus, "calculate_dimensions", as_it_is),
    ):
        yield


def test_our_loop_draws_what_the_pipeline_draws(family):
    policy = make(family)
    plain = by_us(policy, 1.0)
    same(plain, by_pipeline(policy.pipe, policy, 1.0))
    assert (plain[0] - plain[1]).abs().max() > 1e-2 and plain.shape[1:] == policy.image_shape()
    if family is not HunyuanVideo:  # whose guidance is an input
        guided = by_us(policy, 4.0)
        same(guided, by_pipeline(policy.pipe, policy, 4.0))
        assert (guided - plain).abs().max() > 1e-3


def test_encode_then_decode_is_the_vaes(family):
    policy, vae = make(family), make(family).pipe.vae
    images = torch.rand(1, *policy.image_shape())
    torch.manual_seed(0)
    latents = policy.encode(images)
    assert latents.shape[1:] == policy.latent_shape
    x = images * 2 - 1
    whole, still = family in VIDEOS and family not in (ModelScopeT2V, AnimateDiff), family in (QwenImageEdit, QwenImageEditPlus)
    x = x.transpose(1, 2) if whole else x[:, :, None] if still else x.flatten(0, -4)
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = vae.decode(vae.encode(x).latent_dist.sample()).sample
        ours = policy.decode(latents)
    theirs = theirs.transpose(1, 2) if whole else theirs[:, :, 0] if still else theirs.view_as(images)
    same(ours, (theirs / 2 + 0.5).clamp(0, 1))


def test_lora_trains_and_plain_diffusers_loads_it(family, tmp_path):
    policy = make(family, LoRA(rank=4, alpha=8), gradient_checkpointing=family is not ModelScopeT2V)  # which has none
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    x, t = noise(policy), policy.process.timesteps(4)[1:3]
    policy.denoise(x, t, policy.condition(PROMPTS, rows(policy)), 4.0).square().mean().backward()
    assert trained and all("lora_" in n and p.grad.isfinite().all() for n, p in trained.items())
    torch.manual_seed(1)
    for p in trained.values():
        p.data += 0.3 * torch.randn_like(p)
    policy.save(str(tmp_path))
    plain = make(family)
    before = by_pipeline(plain.pipe, policy, 1.0)
    if family is ModelScopeT2V:  # diffusers attaches none to it
        plain.pipe.unet = PeftModel.from_pretrained(plain.pipe.unet, str(tmp_path))
    elif family is HunyuanVideo15:
        plain.pipe.transformer.load_lora_adapter(str(tmp_path), prefix=None, use_safetensors=True)
    else:
        plain.pipe.load_lora_weights(str(tmp_path))
    theirs = by_pipeline(plain.pipe, policy, 1.0)
    same(by_us(policy, 1.0), theirs)
    assert (theirs - before).abs().max() > 1e-3  # the adapter matters
    with policy.reference():
        same(by_us(policy, 1.0), before)


def test_a_saved_pipeline_loads_again(family, tmp_path):
    policy = make(family)
    policy.save(str(tmp_path))
    assert torch.equal(by_us(make(family, pretrained=str(tmp_path)), 2.0), by_us(policy, 2.0))


def test_bfloat16_keeps_masks_and_ids(family):
    policy = make(family, dtype="bfloat16")
    images, exact = by_us(policy, 1.0), by_us(make(family), 1.0)
    assert images.isfinite().all() and (images - exact).abs().mean() < 0.03


def test_every_block_is_sharded(family):
    policy = make(family)
    assert len(policy.blocks(policy.denoiser)) == BLOCKS[family]


@pytest.mark.parametrize("family", EDITS, ids=lambda c: c.__name__)
def test_the_edited_image_matters_and_is_asked_for(family):
    policy = make(family)
    source = rows(policy)["source"]
    with pytest.raises(ValueError, match=f"{family.__name__} edits images and needs the column `source`.*; the rows have skill"):
        policy.condition(PROMPTS, {"skill": ["a", "b"]})
    x, t = noise(policy), policy.process.timesteps(4)[1:3]
    first, second = policy.condition(PROMPTS, {"source": source}), policy.condition(PROMPTS, {"source": source[::-1]})
    with torch.no_grad():
        assert (policy.denoise(x, t, first) - policy.denoise(x, t, second)).abs().max() > 1e-4
    assert policy.keys(PROMPTS, {"source": source}) != policy.keys(PROMPTS, {"source": source[::-1]})
    assert policy.keys(["a", "a"], {"source": source})[0] != policy.keys(["a", "a"], {"source": source})[1]


def test_cogvideox_5b_has_rotary_places(tmp_path):
    torch.manual_seed(0)
    tiny_videos.CogVideoXPipeline(rotary=True).save_pretrained(tmp_path)
    policy = make(CogVideoX, pretrained=str(tmp_path))
    assert isinstance(policy.pipe, CogVideoXPipeline)
    same(by_us(policy, 4.0), by_pipeline(policy.pipe, policy, 4.0))
    assert (by_us(policy, 4.0) - by_us(make(CogVideoX), 4.0)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="num_frames: 5 is not 1 more than a multiple of 8"):
        make(CogVideoX, num_frames=5)


def test_animatediff_is_built_from_stable_diffusion_and_a_motion_adapter(tmp_path):
    torch.manual_seed(0)
    pipe = tiny_videos.AnimateDiffPipeline()
    pipe.motion_adapter.save_pretrained(tmp_path / "motion")
    base = tiny.StableDiffusionPipeline()
    base.save_pretrained(tmp_path / "base")
    scheduler = {"beta_schedule": "linear", "timestep_spacing": "leading"}
    policy = make(AnimateDiff, pretrained=str(tmp_path / "base"), motion_adapter=str(tmp_path / "motion"), scheduler=scheduler)
    conv = policy.denoiser.state_dict()["conv_in.weight"]
    assert torch.equal(conv, base.unet.state_dict()["conv_in.weight"])
    same(by_us(policy, 4.0), by_pipeline(policy.pipe, policy, 4.0))
    motion = policy.denoiser.state_dict()["down_blocks.0.motion_modules.0.proj_in.weight"]
    assert torch.equal(motion, pipe.motion_adapter.state_dict()["down_blocks.0.motion_modules.0.proj_in.weight"])


def test_an_ltx_vae_that_takes_a_noise_level_is_given_zero():
    policy = make(LTXVideo)
    policy.pipe.vae.register_to_config(timestep_conditioning=True)
    with mock.patch.object(policy.pipe.vae, "decode", side_effect=policy.pipe.vae.decode) as decode:
        policy.decode(noise(policy))
    assert decode.call_args.args[1].tolist() == [0, 0]


def test_guidance_of_instruct_pix2pix_counts_three_forwards():
    policy = make(InstructPix2Pix)
    by_us(policy, 4.0, steps=2)
    assert policy.calls["nfe_forward"] == 2 * 2 * 3
