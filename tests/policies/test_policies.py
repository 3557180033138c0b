import json

import diffusers
import pytest
import torch

from lit_align.diffusion.conditioning import cast_conditioning, cat_conditioning
from lit_align.diffusion.sampler import Sampler
from lit_align.policies import codec
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

FAMILIES = [StableDiffusion, StableDiffusionXL, StableDiffusion3]
PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(params=FAMILIES, ids=lambda c: c.__name__)
def family(request):
    return request.param


def perturb(policy, scale=0.3):
    torch.manual_seed(1)
    for p in policy.parameters():
        if p.requires_grad:
            p.data += scale * p.abs().mean().clamp(min=0.2) * torch.randn_like(p)


def load(family, folder):
    missing = {"text_encoder_3": None, "tokenizer_3": None} if family is StableDiffusion3 else {}
    return getattr(diffusers, family.pipeline_class).from_pretrained(folder, **missing)


def by_pipeline(pipe, policy, x, steps=4, guidance_scale=3.0):
    """Images by the plain pipeline's __call__: its own conditioning, scheduler, guidance and VAE."""
    pipe.set_progress_bar_config(disable=True)
    if not isinstance(pipe, diffusers.StableDiffusion3Pipeline):
        keep = {k: pipe.scheduler.config[k] for k in ("beta_start", "beta_end", "beta_schedule", "steps_offset", "timestep_spacing", "prediction_type")}
        end = pipe.scheduler.config.get("set_alpha_to_one", True)  # SDXL's Euler scheduler ends in clean data
        pipe.scheduler = diffusers.DDIMScheduler(**keep, clip_sample=False, set_alpha_to_one=end)
    size = {"height": policy.height, "width": policy.width}
    out = pipe(PROMPTS, latents=x.clone(), num_inference_steps=steps, guidance_scale=guidance_scale, **size, output_type="pt")
    return out.images


def by_us(policy, x, steps=4, guidance_scale=3.0):
    with torch.no_grad():
        return policy.decode(Sampler(steps, guidance_scale)(policy, PROMPTS, x=x).x)


def noise(policy):
    return torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("guidance_scale,resolution", [(1.0, None), (3.0, None), (3.0, (16, 32))])
def test_our_loop_draws_what_the_diffusers_pipeline_draws(family, guidance_scale, resolution):
    policy = family("tiny", resolution=resolution)
    assert policy.latent_shape == ((4, 8, 8) if resolution is None else (4, 8, 16))
    ours = by_us(policy, noise(policy), guidance_scale=guidance_scale)
    theirs = by_pipeline(policy.pipe, policy, noise(policy), guidance_scale=guidance_scale)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


def test_lora_saved_is_what_plain_diffusers_loads(family, tmp_path):
    policy = family("tiny", LoRA(rank=4, alpha=8))
    perturb(policy)
    policy.save(str(tmp_path / "lora"))
    plain = family("tiny").pipe
    before = by_pipeline(plain, policy, noise(policy))
    plain.load_lora_weights(str(tmp_path / "lora"))
    theirs = by_pipeline(plain, policy, noise(policy))
    torch.testing.assert_close(theirs, by_us(policy, noise(policy)), atol=2e-4, rtol=0)
    assert (theirs - before).abs().max() > 2e-3  # the adapter matters


def test_full_model_saved_is_what_plain_diffusers_loads(family, tmp_path):
    policy = family("tiny")
    perturb(policy)
    policy.save(str(tmp_path / "full"))
    theirs = by_pipeline(load(family, str(tmp_path / "full")), policy, noise(policy))
    torch.testing.assert_close(theirs, by_us(policy, noise(policy)), atol=2e-4, rtol=0)
    again = family(str(tmp_path / "full"))
    assert torch.equal(by_us(again, noise(policy)), by_us(policy, noise(policy)))


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_the_reference_is_the_policy_before_training(family, adapter):
    policy = family("tiny", adapter)
    policy.add_reference()
    start = by_us(policy, noise(policy))
    with policy.reference():
        assert torch.equal(by_us(policy, noise(policy)), start)
    perturb(policy)
    moved = by_us(policy, noise(policy))
    assert not torch.equal(moved, start)
    with policy.reference(), policy.reference():  # nesting changes nothing
        assert torch.equal(by_us(policy, noise(policy)), start)
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert torch.equal(by_us(policy, noise(policy)), moved)


def test_lora_trains_the_adapter_and_nothing_else(family):
    policy = family("tiny", LoRA(rank=2), dtype="bfloat16")
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n and p.dtype == torch.float32 for n, p in trained.items())
    frozen = [p for n, p in policy.denoiser.named_parameters() if "lora_" not in n]
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in frozen)
    x = noise(policy)
    t = policy.process.sample_timesteps(2)
    policy.denoise(x, t, policy.condition(PROMPTS)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())


def test_full_training_spares_encoders_and_reference(family):
    policy = family("tiny", Full())
    policy.add_reference()
    assert all(p.requires_grad for p in policy.denoiser.parameters())
    assert not any(p.requires_grad for n, p in policy.named_parameters() if not n.startswith("denoiser."))
    parts = [m for m in policy.pipe.components.values() if isinstance(m, torch.nn.Module) and m is not policy.denoiser]
    assert not any(p.requires_grad for m in parts for p in m.parameters())


def test_training_the_text_encoder_reaches_it_and_the_null_prompt():
    policy = StableDiffusion("tiny", Full(text_encoder=True))
    x, t = noise(policy), policy.process.sample_timesteps(2)
    policy.denoise(x, t, policy.condition(PROMPTS), guidance_scale=3.0).square().mean().backward()
    assert all(p.grad is not None for n, p in policy.pipe.text_encoder.named_parameters() if "position_ids" not in n)
    with pytest.raises(ValueError, match="no reference"):
        policy.add_reference()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_ratio_is_exactly_one_before_the_first_update(family, checkpointing, guidance_scale):
    from lit_align.diffusion.transition import DDIM, FlowSDE

    policy = family("tiny", LoRA(rank=2), gradient_checkpointing=checkpointing).train()
    sampler = Sampler(3, guidance_scale, FlowSDE() if family is StableDiffusion3 else DDIM(1.0))
    trajectory = sampler(policy, PROMPTS, record=True).trajectory
    m = trajectory.minibatch(torch.arange(2), torch.ones(2, dtype=torch.long))
    gaussian, _, _ = sampler.gaussian(policy, m["x_t"], m["t"], m["s"], m["cond"])
    log_prob = gaussian.log_prob(m["x_s"])
    assert torch.equal(log_prob.detach(), m["log_prob"]) and log_prob.requires_grad


def test_encode_and_decode_follow_the_vaes_scale(family):
    policy = family("tiny")
    images = torch.rand(2, 3, policy.resolution, policy.resolution)
    torch.manual_seed(0)
    x_0 = policy.encode(images)
    vae = policy.pipe.vae
    torch.manual_seed(0)
    z = vae.encode(images * 2 - 1).latent_dist.sample()
    shift = vae.config.shift_factor or 0
    torch.testing.assert_close(x_0, (z - shift) * vae.config.scaling_factor)
    torch.testing.assert_close(policy.decode(x_0), (vae.decode(z).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_images_carry_gradient_back_to_the_policy(family):
    policy = family("tiny", LoRA(rank=2))
    state = Sampler(2, 1.0)(policy, PROMPTS, grad=torch.tensor([False, True]))
    policy.decode(state.x).mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters() if p.requires_grad)


def test_offloaded_encoders_give_the_same(family):
    policy = family("tiny")
    cond, images = policy.condition(PROMPTS), torch.rand(1, 3, policy.resolution, policy.resolution)
    torch.manual_seed(0)
    latents = policy.encode(images)
    policy.offload_encoders()
    torch.manual_seed(0)
    assert torch.equal(policy.encode(images), latents)
    assert all(torch.equal(a, b) for a, b in zip(cond.values(), policy.condition(PROMPTS).values()))


def test_calls_count_images_and_branches():
    policy = StableDiffusion("tiny")
    assert Sampler(3, 1.0)(policy, PROMPTS).calls["nfe_forward"] == 3
    assert Sampler(3, 2.0)(policy, PROMPTS).calls["nfe_forward"] == 6


def test_a_pipeline_of_pickles_is_refused_unless_trusted(tmp_path):
    policy = StableDiffusion("tiny")
    policy.pipe.save_pretrained(tmp_path, safe_serialization=False)
    for path in tmp_path.rglob("model.safetensors"):  # transformers always writes safetensors: make it what old repositories have
        from safetensors.torch import load_file

        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    with pytest.raises(ValueError, match="allow_pickle"):
        StableDiffusion(str(tmp_path))


def test_what_cannot_be_loaded_is_said_in_one_sentence(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="neither a folder|safetensors"):
        StableDiffusion(str(tmp_path / "nowhere"))


def refused(tmp_path, message, family=StableDiffusion, **kwargs):
    with pytest.raises(ValueError, match=message) as error:
        family(str(tmp_path), **kwargs)
    assert "allow_pickle" not in str(error.value) and "\n" not in str(error.value)


def test_a_folder_with_only_a_variant_says_which(tmp_path):
    pipe = StableDiffusion("tiny").pipe
    pipe.save_pretrained(tmp_path, variant="fp16")
    refused(tmp_path, "holds only a variant of its weights; set variant: fp16")
    again = StableDiffusion(str(tmp_path), variant="fp16").denoiser
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pipe.unet.parameters(), strict=True))


def test_a_model_saved_with_adapters_attached_is_refused(tmp_path, family):
    policy = family("tiny", LoRA(rank=2))
    policy.pipe.save_pretrained(tmp_path)
    refused(tmp_path, f"no values for .* of its {policy.denoiser_name} .*fuse and unload", family)


def test_what_is_no_pipeline_of_the_family_is_refused_by_name(tmp_path):
    StableDiffusion("tiny").pipe.save_pretrained(tmp_path / "sd")
    refused(tmp_path / "sd", "is a StableDiffusionPipeline; StableDiffusionXL is for a StableDiffusionXLPipeline", StableDiffusionXL)
    index = json.loads((tmp_path / "sd/model_index.json").read_text())
    (tmp_path / "sd/model_index.json").write_text(json.dumps(index | {"requires_aesthetics_score": True}))
    refused(tmp_path / "sd", "refiner")
    StableDiffusion("tiny", LoRA(rank=2)).save(str(tmp_path / "lora"))
    refused(tmp_path / "lora", "holds a LoRA, not a model")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither a folder")
    for name, message in {"model.safetensors": "is one file, with weights alone", "model-Q4.gguf": "GGUF"}.items():
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, message)


@pytest.mark.parametrize("channels", [8, 9])
def test_inpainting_and_editing_unets_are_refused(tmp_path, channels):
    pipe = StableDiffusion("tiny").pipe
    config = {k: v for k, v in pipe.unet.config.items() if k != "_use_default_values"}
    pipe.unet = diffusers.UNet2DConditionModel.from_config(config | {"in_channels": channels})
    pipe.save_pretrained(tmp_path)
    refused(tmp_path, f"takes {channels} channels, but its VAE's latents have 4")


def test_parts_of_other_kinds_are_refused_by_name(tmp_path):
    pipe = StableDiffusion("tiny").pipe
    pipe.vae = diffusers.AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    pipe.save_pretrained(tmp_path / "taesd")
    refused(tmp_path / "taesd", "has a VAE of class AutoencoderTiny; StableDiffusion reads an AutoencoderKL")


def test_sd3_shifts_by_resolution_where_its_scheduler_says_so():
    policy = StableDiffusion3("tiny", resolution=(16, 32), scheduler={"use_dynamic_shifting": True, "base_shift": 1.5})
    assert policy.process.shift == pytest.approx(torch.tensor(1.5 + (1.15 - 1.5) * (32 - 256) / (4096 - 256)).exp().item())
    theirs = by_pipeline(policy.pipe, policy, noise(policy))
    torch.testing.assert_close(by_us(policy, noise(policy)), theirs, atol=2e-4, rtol=0)


def test_statistics_may_be_buffers_of_the_vae():
    vae = torch.nn.Module()
    vae.config = {"scaling_factor": 0.5}
    vae.register_buffer("latents_mean", torch.tensor([1.0, 2.0, 3.0, 4.0]))
    vae.register_buffer("latents_std", torch.tensor([2.0, 2.0, 4.0, 4.0]))
    shift, scale = codec.statistics(vae, 4)
    assert shift.shape == (4, 1, 1, 1) and shift.flatten().tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(scale.flatten(), 0.5 / torch.tensor([2.0, 2.0, 4.0, 4.0]))


def test_a_resolution_between_latents_is_refused():
    with pytest.raises(ValueError, match="resolution: 17 is no multiple of 2 pixels"):
        StableDiffusion("tiny", resolution=(16, 17))


def test_scheduler_options_replace_the_checkpoints_and_are_saved(tmp_path):
    policy = StableDiffusion("tiny", scheduler={"prediction_type": "v_prediction", "timestep_spacing": "trailing"})
    assert policy.process.prediction == "v_prediction" and policy.process.timesteps(4)[0] == 999
    policy.save(str(tmp_path))
    again = StableDiffusion(str(tmp_path))
    torch.testing.assert_close(by_us(again, noise(again)), by_pipeline(again.pipe, again, noise(again)), atol=2e-4, rtol=0)
    flow = StableDiffusion("tiny", scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert flow.process.prediction == "flow" and flow.process.shift == 3
    with pytest.raises(ValueError, match="DDIMScheduler has no option prediction; it has .*prediction_type"):
        StableDiffusion("tiny", scheduler={"prediction": "v_prediction"})
    with pytest.raises(ValueError, match="diffusers has no scheduler Dream"):
        StableDiffusion("tiny", scheduler={"_class_name": "Dream"})


def test_latents_are_scaled_by_channel_where_the_vae_says_so():
    policy = StableDiffusionXL("tiny")
    policy.pipe.vae.register_to_config(latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[0.5, 1.5, 2.0, 0.7])
    theirs = by_pipeline(policy.pipe, policy, noise(policy))
    torch.testing.assert_close(by_us(policy, noise(policy)), theirs, atol=2e-4, rtol=0)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    z = policy.pipe.vae.encode(images * 2 - 1).latent_dist
    mean, std = (torch.tensor(policy.pipe.vae.config[k]).view(-1, 1, 1) for k in ("latents_mean", "latents_std"))
    torch.manual_seed(1)
    x_0 = policy.encode(images)
    torch.manual_seed(1)
    torch.testing.assert_close(x_0, (z.sample() - mean) / std * 0.13025)


def test_encode_takes_images_and_nothing_else():
    with pytest.raises(ValueError, match=r"encode takes images \(N, 3, H, W\)"):
        StableDiffusion("tiny").encode(torch.rand(2, 2, 3, 16, 16))


def test_texts_of_different_length_are_filled_and_ids_keep_their_dtype():
    long = {"text": torch.ones(2, 5, 3), "mask": torch.ones(2, 5, dtype=torch.bool), "ids": torch.full((2, 1), 999)}
    short = {"text": torch.ones(1, 2, 3), "mask": torch.ones(1, 2, dtype=torch.bool), "ids": torch.full((1, 1), 998)}
    cond = cat_conditioning([short, long])
    assert cond["text"].shape == (3, 5, 3) and cond["text"][0].sum() == 6 and cond["text"][1:].sum() == 30
    assert cond["mask"].dtype == torch.bool and cond["mask"].sum(1).tolist() == [2, 5, 5]
    cast = cast_conditioning(cond, torch.bfloat16)
    assert cast["text"].dtype == torch.bfloat16 and cast["mask"].dtype == torch.bool and cast["ids"].tolist() == [[998], [999], [999]]


def test_the_summary_is_the_mean_of_the_real_tokens():
    policy, text = StableDiffusion("tiny"), torch.randn(2, 5, 3)
    assert torch.equal(policy.summary({"text": text}), text.mean(1))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    torch.testing.assert_close(policy.summary({"text": text, "mask": mask}), torch.stack([text[0, :2].mean(0), text[1].mean(0)]))


def test_lora_is_saved_where_the_pipeline_has_no_function_for_it(tmp_path):
    class Plain(diffusers.DiffusionPipeline):
        def __init__(self, transformer):
            self.register_modules(transformer=transformer)

    policy = StableDiffusion3("tiny", LoRA(rank=4, alpha=8))
    perturb(policy)
    policy.pipe = Plain(policy.denoiser)
    policy.save_lora(str(tmp_path))
    x, t, other = noise(policy), torch.full((2,), 500.0), StableDiffusion3("tiny")
    cond = other.condition(PROMPTS)
    forward = lambda p: p.denoiser(x, cond["text"], cond["pooled"], t).sample
    before = forward(other)
    other.denoiser.load_lora_adapter(str(tmp_path), prefix=None, use_safetensors=True)
    torch.testing.assert_close(forward(other), forward(policy))
    assert not torch.allclose(before, forward(policy), atol=1e-3)


def test_every_block_of_a_transformer_is_sharded(family):
    policy = family("tiny")
    blocks = policy.blocks(policy.denoiser)
    lists = [m for m in policy.denoiser.children() if isinstance(m, torch.nn.ModuleList) and len(m)]
    assert len({id(b) for b in blocks}) == len(blocks) and {id(b) for m in lists for b in m} <= {id(b) for b in blocks}


def test_quantization_needs_cuda(tmp_path):
    StableDiffusion("tiny").pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        StableDiffusion(str(tmp_path), LoRA(), quantize="int4")


def test_sd3_loads_without_t5_and_takes_its_length(tmp_path):
    StableDiffusion3("tiny").pipe.save_pretrained(tmp_path)
    long, short = StableDiffusion3(str(tmp_path)), StableDiffusion3(str(tmp_path), max_sequence_length=1, drop_t5=True)
    assert long.condition(["x"])["text"].shape[1] == 77 + 256 and short.condition(["x"])["text"].shape[1] == 77 + 1


def test_v_prediction_comes_from_the_scheduler(tmp_path):
    policy = StableDiffusion("tiny")
    policy.pipe.register_to_config()
    policy.pipe.scheduler.register_to_config(prediction_type="v_prediction")
    policy.pipe.save_pretrained(tmp_path)
    v = StableDiffusion(str(tmp_path))
    assert v.process.prediction == "v_prediction"
    theirs = by_pipeline(v.pipe, v, noise(v))
    torch.testing.assert_close(by_us(v, noise(v)), theirs, atol=2e-4, rtol=0)


def test_the_shipped_pipeline_loads_in_plain_diffusers(shapes_sd):
    policy, pipe = StableDiffusion(shapes_sd), diffusers.StableDiffusionPipeline.from_pretrained(shapes_sd, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(PROMPTS, latents=noise(policy), num_inference_steps=4, guidance_scale=2.0, output_type="pt").images
    torch.testing.assert_close(by_us(policy, noise(policy), 4, 2.0), theirs.float(), atol=2e-3, rtol=0)


def test_the_shipped_flow_pipeline_loads_in_plain_diffusers(shapes_flow):
    policy = StableDiffusion3(shapes_flow, max_sequence_length=1)
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(shapes_flow, torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "max_sequence_length": 1}
    theirs = pipe(PROMPTS, latents=noise(policy), num_inference_steps=4, guidance_scale=2.0, output_type="pt", **size).images
    torch.testing.assert_close(by_us(policy, noise(policy), 4, 2.0), theirs.float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_sd35_draws_what_its_pipeline_draws_with_t5_and_either_shift(dynamic, tmp_path):
    from lit_align.policies.tiny_transformers import _byte_tokenizer, _t5

    pipe = StableDiffusion3("tiny").pipe
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    pipe.register_modules(text_encoder_3=_t5(), tokenizer_3=_byte_tokenizer(), scheduler=scheduler)
    pipe.save_pretrained(tmp_path)
    for length in (16, 300):
        policy = StableDiffusion3(str(tmp_path), resolution=(16, 24), max_sequence_length=length)
        prompts, x = ["a red circle", "two blue squares, and a star"], noise(policy)
        assert policy.condition(prompts)["text"].shape[1] == 77 + length
        policy.pipe.set_progress_bar_config(disable=True)
        size = {"height": 16, "width": 24, "max_sequence_length": length, "output_type": "pt"}
        for w in (1.0, 5.0):
            theirs = policy.pipe(prompts, latents=x, num_inference_steps=3, guidance_scale=w, **size).images
            with torch.no_grad():
                ours = policy.decode(Sampler(3, w)(policy, prompts, x=x).x)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
