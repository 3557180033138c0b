"""Tiny pipelines with random weights of the flow transformers: `pretrained: tiny`.

Schedulers are the published ones. Each function is named after the diffusers pipeline it returns.
"""

from lit_align.policies.tiny import _text_config, _tokenizer, _vae

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
SMALL_DECODER = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def _byte_tokenizer(length: int = 512):
    """Any text, a token per byte; with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_ = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_, model_max_length=length, padding_side="right", chat_template=CHAT, **special
    )


def _t5(model: str = "T5EncoderModel"):
    import transformers

    config = getattr(transformers, model.replace("EncoderModel", "Config"))
    return getattr(transformers, model)(config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def _qwen3(layers: int = 3):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SMALL_DECODER | {"num_hidden_layers": layers}, head_dim=8))


def _flow_vae():
    """FLUX.1's AutoencoderKL in small; Z-Image has it too."""
    return _vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def _dynamic(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **options)


def _small(transformer):
    """The transformer, with 8 as the default side of its latents."""
    transformer.register_to_config(sample_size=8)
    return transformer


def FluxPipeline():
    """dev: guidance as an input, dynamic shift."""
    from diffusers import FluxPipeline as Pipeline
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel

    words = _tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    text = CLIPTextModel(_text_config(words, 16))
    return Pipeline(_dynamic(), _flow_vae(), text, words, _t5(), _byte_tokenizer(), _small(transformer))


def QwenImagePipeline():
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from diffusers import QwenImagePipeline as Pipeline
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 3.0, 0.5],
    )
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default", "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    tokens = ("vision_end", "vision_start", "vision", "image", "video")
    ids = {f"{name}_token_id": 290 + i for i, name in enumerate(tokens)}
    config = Qwen2_5_VLConfig(text_config=SMALL_DECODER | {"rope_scaling": rope}, vision_config=vision, **ids)
    terminal = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    text = Qwen2_5_VLForConditionalGeneration(config)
    return Pipeline(_dynamic(**terminal), vae, text, _byte_tokenizer(2048), _small(transformer))


def ZImagePipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from diffusers import ZImagePipeline as Pipeline
    from torch import nn

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # the model leaves them uninitialized
        nn.init.normal_(token, std=0.02)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Pipeline(scheduler, _flow_vae(), _qwen3(), _byte_tokenizer(), _small(transformer))


def _flux2(guidance: bool):
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae, _small(transformer)


def Flux2Pipeline():
    from diffusers import Flux2Pipeline as Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vae, transformer = _flux2(guidance=True)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"model_type": "pixtral", "image_size": 16, "patch_size": 4}
    text = SMALL_DECODER | {"model_type": "mistral", "head_dim": 8, "num_hidden_layers": 30}  # the last that is read
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=290)
    words = _byte_tokenizer(2048)
    return Pipeline(_dynamic(), vae, Mistral3ForConditionalGeneration(config), words, transformer)


def Flux2KleinPipeline():
    from diffusers import Flux2KleinPipeline as Pipeline

    vae, transformer = _flux2(guidance=False)
    return Pipeline(_dynamic(), vae, _qwen3(27), _byte_tokenizer(), transformer)


def WanPipeline():
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from diffusers import WanPipeline as Pipeline

    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 3.0, 0.5],
    )
    transformer.register_to_config(sample_size=4)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return Pipeline(_byte_tokenizer(), _t5("UMT5EncoderModel"), vae, scheduler, transformer)
