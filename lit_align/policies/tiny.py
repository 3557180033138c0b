"""Tiny pipelines with random weights in the layout of the real ones, for smoke runs and tests: `pretrained: tiny`.

Schedulers are the published ones. Each function is named after the diffusers pipeline it returns.
"""


def _tokenizer():
    """A byte-level CLIPTokenizer: any text, a token per byte."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


def _text_config(words, width: int):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def _vae(latent_channels: int, **config):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def _unet(width: int, **config):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
        **config,
    )


SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def StableDiffusionPipeline():
    from diffusers import DDIMScheduler
    from diffusers import StableDiffusionPipeline as Pipeline
    from transformers import CLIPTextModel

    words = _tokenizer()
    scheduler = DDIMScheduler(**SCALED_LINEAR, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    text = CLIPTextModel(_text_config(words, 16))
    return Pipeline(_vae(4), text, words, _unet(16), scheduler, None, None, requires_safety_checker=False)


def StableDiffusionXLPipeline():
    from diffusers import EulerDiscreteScheduler
    from diffusers import StableDiffusionXLPipeline as Pipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    words = _tokenizer()
    unet = _unet(
        32, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 6 * 4
    )
    scheduler = EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading", steps_offset=1)
    return Pipeline(
        _vae(4, scaling_factor=0.13025, force_upcast=True),
        CLIPTextModel(_text_config(words, 16)),
        CLIPTextModelWithProjection(_text_config(words, 16)),
        words,
        words,
        unet,
        scheduler,
        add_watermarker=False,
    )


def StableDiffusion3Pipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from diffusers import StableDiffusion3Pipeline as Pipeline
    from transformers import CLIPTextModelWithProjection

    words = _tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        CLIPTextModelWithProjection(_text_config(words, 16)),
        words,
        CLIPTextModelWithProjection(_text_config(words, 16)),
        words,
        None,
        None,
    )


def CLIPModel():
    """A CLIP of two layers for 16 x 16 images, and its tokenizer."""
    import torch
    from transformers import CLIPConfig
    from transformers import CLIPModel as Model

    words = _tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=_text_config(words, 8).to_dict(), vision_config=vision, projection_dim=8)
        return Model(config).eval(), words


def Mask2Former():
    """A Mask2Former of COCO's 80 classes with 20 queries."""
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = {"depths": [1] * 4, "num_heads": [1, 1, 2, 2], "out_features": [f"stage{i}" for i in range(1, 5)]}
    sizes = dict.fromkeys(
        ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward"), 32
    )
    layers = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 20, "num_labels": 80}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = SwinConfig(image_size=32, embed_dim=8, window_size=4, **stages)
        config = Mask2FormerConfig(backbone_config=backbone, **sizes, **layers)
        return Mask2FormerForUniversalSegmentation(config).eval()
