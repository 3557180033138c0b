"""Tiny pipelines with random weights of video models and of models that edit images: `pretrained: tiny`.

Schedulers are the published ones. Each function is named after the diffusers pipeline it returns.
"""

from lit_align.policies import tiny, tiny_transformers
from lit_align.policies.tiny import SCALED_LINEAR
from lit_align.policies.tiny_transformers import SMALL_DECODER, _byte_tokenizer, _small, _t5


def FluxKontextPipeline():
    from diffusers import FluxKontextPipeline as Pipeline

    return Pipeline(**tiny_transformers.FluxPipeline().components)


def _qwen_edit(pipeline):
    """Qwen-Image's parts with a Qwen2.5-VL that sees, and its processor."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from lit_align.policies.qwen_image_edit import qwen_processor

    words = _byte_tokenizer(4096)
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]
    words.add_special_tokens({"additional_special_tokens": marks})
    names = ("vision_start", "vision_end", "image", "video")
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(mark) for name, mark in zip(names, marks)}
    text = SMALL_DECODER | {"bos_token_id": 1, "eos_token_id": 2}
    text["rope_scaling"] = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default", "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [0]}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=16**2, max_pixels=32**2)
    parts = tiny_transformers.QwenImagePipeline().components | {"text_encoder": model, "tokenizer": words}
    return pipeline(**parts, processor=qwen_processor(pictures, words))


def QwenImageEditPipeline():
    from diffusers import QwenImageEditPipeline as Pipeline

    return _qwen_edit(Pipeline)


def QwenImageEditPlusPipeline():
    from diffusers import QwenImageEditPlusPipeline as Pipeline

    return _qwen_edit(Pipeline)


def StableDiffusionInstructPix2PixPipeline():
    from diffusers import EulerAncestralDiscreteScheduler
    from diffusers import StableDiffusionInstructPix2PixPipeline as Pipeline

    parts = tiny.StableDiffusionPipeline().components
    parts |= {"unet": tiny._unet(16, in_channels=8)}
    scheduler = EulerAncestralDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading", steps_offset=1)
    return Pipeline(**parts | {"scheduler": scheduler}, requires_safety_checker=False)


def LTXPipeline():
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
    from diffusers import LTXPipeline as Pipeline

    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        timestep_conditioning=False,
    )
    vae.latents_mean.normal_(std=0.2)
    vae.latents_std.uniform_(0.5, 2)
    shift = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **shift)
    return Pipeline(scheduler, vae, _t5(), _byte_tokenizer(), _small(transformer))


def CogVideoXPipeline(rotary: bool = False):
    """The 2B; with `rotary` the 5B."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
    from diffusers import CogVideoXPipeline as Pipeline

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=32,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=32,
        use_rotary_positional_embeddings=rotary,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=1.15258426,
    )
    zero_snr = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = CogVideoXDDIMScheduler(snr_shift_scale=3.0, clip_sample=False, **SCALED_LINEAR, **zero_snr)
    return Pipeline(_byte_tokenizer(), _t5(), vae, transformer, scheduler)


def TextToVideoSDPipeline():
    """ModelScope's."""
    from diffusers import TextToVideoSDPipeline as Pipeline
    from diffusers import UNet3DConditionModel

    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    parts = tiny.StableDiffusionPipeline().components
    return Pipeline(**{name: parts[name] for name in names}, unet=unet)


def AnimateDiffPipeline():
    from diffusers import AnimateDiffPipeline as Pipeline
    from diffusers import DDIMScheduler, MotionAdapter

    motion = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
    )
    linear = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timestep_spacing": "linspace"}
    scheduler = DDIMScheduler(**linear, clip_sample=False, steps_offset=1)
    parts = tiny.StableDiffusionPipeline().components
    names = ("vae", "text_encoder", "tokenizer", "unet")
    return Pipeline(**{name: parts[name] for name in names}, motion_adapter=motion, scheduler=scheduler)


def HunyuanVideoPipeline():
    from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel
    from diffusers import HunyuanVideoPipeline as Pipeline
    from transformers import CLIPTextModel, LlamaConfig, LlamaModel

    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, scaling_factor=0.476986
    )
    words, scheduler = tiny._tokenizer(), FlowMatchEulerDiscreteScheduler(shift=7.0)
    llama = LlamaModel(LlamaConfig(**SMALL_DECODER, head_dim=8))
    clip = CLIPTextModel(tiny._text_config(words, 16))
    transformer.register_to_config(sample_size=4)
    return Pipeline(llama, _byte_tokenizer(2048), transformer, vae, scheduler, clip, words)


def HunyuanVideo15Pipeline():
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Transformer3DModel,
    )
    from diffusers import HunyuanVideo15Pipeline as Pipeline
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=32,
        image_embed_dim=12,
        rope_axes_dim=(4, 4, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    text = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**SMALL_DECODER, **ends, rope_scaling=rope))
    scheduler, guider = FlowMatchEulerDiscreteScheduler(shift=5.0), ClassifierFreeGuidance(guidance_scale=6.0)
    words = _byte_tokenizer(2048)
    return shorten(Pipeline(text, words, _small(transformer), vae, scheduler, _t5(), _byte_tokenizer(), guider))


def shorten(pipe):
    """HunyuanVideo-1.5's pipeline with fewer tokens than its 1000 of the text, 256 of words in quotes and 729 of an
    image. (A saved pipeline does not keep these numbers.)"""
    pipe.system_message, pipe.prompt_template_encode_start_idx = "d", 3
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 64, 16, 5
    return pipe
