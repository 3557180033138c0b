"""Every flow family against its own diffusers pipeline: images of the same noise, LoRA weights, encode and decode."""

import diffusers
import pytest
import torch
from image_families import BLOCKS, IMAGES, STEPS
from peft import PeftModel
from sharded_families import SMALL
from video_families import EDITS, VIDEOS

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Frozen, LoRA
from lit_align.policies.flux import Flux
from lit_align.policies.flux2 import Flux2, Flux2Klein
from lit_align.policies.hunyuan_dit import HunyuanDiT
from lit_align.policies.lumina2 import Lumina2
from lit_align.policies.packing import pack
from lit_align.policies.pixart import PixArtAlpha
from lit_align.policies.qwen_image import QwenImage
from lit_align.policies.sana import Sana
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.policies.wan import Wan
from lit_align.policies.z_image import ZImage
from lit_align.studies.models import families, lora_loader

PROMPTS = ["a red circle", "two blue squares, and a star"]  # of different length
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}  # Wan's own, UniPC, is of second order
FAMILIES = {  # arguments of the policy; of the pipeline, from noise and guidance scale
    Flux: ({"resolution": (16, 24), "max_sequence_length": 32}, lambda x, w: {"latents": pack(x), "true_cfg_scale": w, "negative_prompt": [""] * 2, "guidance_scale": 3.5}),
    Flux2: ({"resolution": (16, 24), "max_sequence_length": 1024}, lambda x, w: {"latents": x, "guidance_scale": 4.0}),
    Flux2Klein: ({"resolution": (16, 24), "max_sequence_length": 48}, lambda x, w: {"latents": x, "guidance_scale": w}),
    QwenImage: ({"resolution": (32, 48), "max_sequence_length": 512}, lambda x, w: {"latents": pack(x), "true_cfg_scale": w, "negative_prompt": " "}),
    Wan: ({"resolution": (32, 48), "max_sequence_length": 32, "num_frames": 5, "scheduler": EULER}, lambda x, w: {"latents": x, "guidance_scale": w, "num_frames": 5}),
    ZImage: ({"resolution": (16, 24), "max_sequence_length": 64}, lambda x, w: {"latents": x, "guidance_scale": w - 1}),
    **IMAGES,
}  # fmt: skip


@pytest.fixture(params=FAMILIES, ids=lambda c: c.__name__)
def family(request):
    return request.param


def make(family, adapter=None, pretrained="tiny", **kwargs):
    policy = family(pretrained, adapter or Frozen(), **FAMILIES[family][0] | kwargs)
    policy.pipe.set_progress_bar_config(disable=True)
    return policy


def noise(policy):
    return torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))


def by_pipeline(pipe, policy, w, steps=3):
    arguments = FAMILIES[type(policy)][1](noise(policy), w)
    size = {"height": policy.height, "width": policy.width}
    if hasattr(policy, "max_sequence_length"):
        size["max_sequence_length"] = policy.max_sequence_length
    torch.manual_seed(7)
    out = pipe(prompt=list(PROMPTS), num_inference_steps=steps, output_type="pt", **size, **arguments)
    return out.frames if isinstance(policy, Wan) else out.images


def by_us(policy, w, steps=3):
    torch.manual_seed(7)
    with torch.no_grad():
        return policy.decode(Sampler(steps, w, STEPS.get(type(policy)))(policy, PROMPTS, x=noise(policy)).x)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=0)


def load_lora(loader, pipe, folder):
    """As docs/models.md says."""
    {
        "pipe.load_lora_weights": lambda: pipe.load_lora_weights(str(folder)),
        "pipe.transformer.load_lora_adapter": lambda: pipe.transformer.load_lora_adapter(str(folder), prefix=None, use_safetensors=True),
        "peft.PeftModel.from_pretrained": lambda: setattr(pipe, "transformer", PeftModel.from_pretrained(pipe.transformer, str(folder))),
    }[loader]()


def perturb(policy):
    torch.manual_seed(1)
    for p in policy.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn_like(p)


def test_every_family_is_tested():
    """Here or, the first three, in test_policies; and in test_families_train and sharded_families."""
    assert set(families()) == {StableDiffusion, StableDiffusionXL, StableDiffusion3, *FAMILIES, *VIDEOS, *EDITS} == set(SMALL)


def test_our_loop_draws_what_the_pipeline_draws(family):
    policy = make(family)
    plain = by_us(policy, 1.0)
    same(plain, by_pipeline(policy.pipe, policy, 1.0))
    assert (plain[0] - plain[1]).abs().max() > 1e-2  # the images depend on the latents
    if family is not Flux2 and family not in STEPS:  # which have no classifier-free guidance
        guided = by_us(policy, 4.0)
        same(guided, by_pipeline(policy.pipe, policy, 4.0))
        assert (guided - plain).abs().max() > 1e-3


def test_encode_then_decode_is_the_vaes(family):
    policy, vae = make(family), make(family).pipe.vae
    images = torch.rand(2, *policy.image_shape())
    torch.manual_seed(0)
    latents = policy.encode(images)
    assert latents.shape[1:] == policy.latent_shape
    x = images * 2 - 1
    x = {Wan: lambda: x.transpose(1, 2), QwenImage: lambda: x[:, :, None]}.get(family, lambda: x)()
    torch.manual_seed(0)
    with torch.no_grad():
        z = vae.encode(x)
        theirs = vae.decode(z.latent_dist.sample() if "latent_dist" in z else z.latent).sample
        ours = policy.decode(latents)
    theirs = {Wan: lambda: theirs.transpose(1, 2), QwenImage: lambda: theirs[:, :, 0]}.get(family, lambda: theirs)()
    same(ours, (theirs / 2 + 0.5).clamp(0, 1))


def test_lora_trains_and_plain_diffusers_loads_it(family, tmp_path):
    policy = make(family, LoRA(rank=4, alpha=8), gradient_checkpointing=family is not HunyuanDiT)  # which has none
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    x, t = noise(policy), policy.process.timesteps(4)[1:3]
    policy.denoise(x, t, policy.condition(PROMPTS), 4.0).square().mean().backward()
    assert trained and all("lora_" in n and p.grad.isfinite().all() for n, p in trained.items())
    perturb(policy)
    policy.save(str(tmp_path))
    plain = make(family)
    before = by_pipeline(plain.pipe, policy, 1.0)
    load_lora(lora_loader(policy), plain.pipe, tmp_path)
    theirs = by_pipeline(plain.pipe, policy, 1.0)
    same(by_us(policy, 1.0), theirs)
    assert (theirs - before).abs().max() > 1e-3  # the adapter matters
    ours = by_us(policy, 1.0)
    with policy.reference():
        same(by_us(policy, 1.0), before)
    policy.save(str(tmp_path / "merged"), merge=True)
    same(by_us(make(family, pretrained=str(tmp_path / "merged")), 1.0), ours)


def test_a_saved_pipeline_loads_again(family, tmp_path):
    policy = make(family)
    policy.save(str(tmp_path))
    assert torch.equal(by_us(make(family, pretrained=str(tmp_path)), 2.0), by_us(policy, 2.0))


def test_bfloat16_keeps_masks_and_ids(family):
    policy = make(family, dtype="bfloat16")
    images, exact = by_us(policy, 1.0), by_us(make(family), 1.0)
    assert images.isfinite().all() and (images - exact).abs().mean() < 0.02


def test_every_block_is_sharded(family):
    policy = make(family)
    blocks = policy.blocks(policy.denoiser)
    wanted = {Flux: 3, Flux2: 3, Flux2Klein: 3, QwenImage: 2, Wan: 2, ZImage: 4, **BLOCKS}  # double and single ones; refiners too
    assert len(blocks) == wanted[family]


def test_flux_schnell_has_no_guidance_and_a_static_shift(tmp_path):
    pipe = make(Flux).pipe
    config = {k: v for k, v in pipe.transformer.config.items() if k not in ("_use_default_values", "sample_size")}
    pipe.transformer = diffusers.FluxTransformer2DModel.from_config(config | {"guidance_embeds": False})
    pipe.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0))
    pipe.save_pretrained(tmp_path)
    policy = make(Flux, pretrained=str(tmp_path))
    torch.testing.assert_close(policy.process.timesteps(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    same(by_us(policy, 1.0, 4), by_pipeline(policy.pipe, policy, 1.0, 4))


def test_dev_follows_its_distilled_guidance():
    policy, other = make(Flux), make(Flux, distilled_guidance=1.0)
    assert (by_us(policy, 1.0) - by_us(other, 1.0)).abs().max() > 1e-4


def test_wan_5b_draws_what_its_pipeline_draws_with_a_time_for_every_token(tmp_path):
    pipe = make(Wan).pipe
    pipe.register_to_config(expand_timesteps=True)
    pipe.save_pretrained(tmp_path / "5b")
    policy = make(Wan, pretrained=str(tmp_path / "5b"))
    same(by_us(policy, 3.0), by_pipeline(policy.pipe, policy, 3.0))
    pipe.register_to_config(expand_timesteps=False, boundary_ratio=0.875)
    pipe.save_pretrained(tmp_path / "14b")
    with pytest.raises(ValueError, match="two denoisers"):
        make(Wan, pretrained=str(tmp_path / "14b"))
    with pytest.raises(ValueError, match="num_frames: 6 is not 1 more than a multiple of 4"):
        make(Wan, num_frames=6)


def test_prompts_stay_as_they_were(family):
    prompts = list(PROMPTS)
    make(family).condition(prompts)
    assert prompts == PROMPTS


def test_pixart_alpha_for_1024_pixels_is_told_an_images_size_and_shape(tmp_path):
    pipe = make(PixArtAlpha).pipe
    config = {k: v for k, v in pipe.transformer.config.items() if k != "_use_default_values"}
    torch.manual_seed(0)
    pipe.transformer = diffusers.PixArtTransformer2DModel.from_config(config | {"sample_size": 128, "num_attention_heads": 3, "cross_attention_dim": 24})
    pipe.save_pretrained(tmp_path)
    policy = make(PixArtAlpha, pretrained=str(tmp_path))
    assert policy.denoiser.use_additional_conditions
    same(by_us(policy, 4.0), by_pipeline(policy.pipe, policy, 4.0))


@pytest.mark.parametrize("family", [Sana, Lumina2], ids=lambda c: c.__name__)
def test_a_dropped_caption_is_what_guidance_leads_away_from(family):
    policy = make(family)
    cond, null = policy.condition(["a red circle", "", "a star"]), policy.null(1)
    alone = policy.condition(["a star"])
    for key in ("text", "mask"):
        torch.testing.assert_close(cond[key][1:2], null[key])
        torch.testing.assert_close(cond[key][2:], alone[key])
    assert (cond["text"][0] - null["text"][0]).abs().max() > 1e-3
