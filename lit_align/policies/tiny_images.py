"""Tiny pipelines with random weights of further models of images: `pretrained: tiny`.

Schedulers are the published ones. Each function is named after the diffusers pipeline it returns.
"""

from lit_align.policies.tiny import SCALED_LINEAR, _text_config, _tokenizer, _unet, _vae
from lit_align.policies.tiny_transformers import SMALL_DECODER, _byte_tokenizer, _flow_vae, _small, _t5


def _gemma2():
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(**SMALL_DECODER, head_dim=8, attn_implementation="eager"))


def _deep_compression_vae():
    from diffusers import AutoencoderDC

    blocks, no_scales = ["ResBlock", "EfficientViTBlock"], [[], [5]]
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=[8, 8],
        decoder_block_out_channels=[8, 8],
        encoder_layers_per_block=[1, 1],
        decoder_layers_per_block=[1, 1],
        encoder_qkv_multiscales=no_scales,
        decoder_qkv_multiscales=no_scales,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


def _vae_of_8(**config):
    """An AutoencoderKL with 8 pixels a latent, as some pipelines take for granted."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
        **config,
    )


def _sana(**config):
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
        **config,
    )


def SanaPipeline():
    from diffusers import DPMSolverMultistepScheduler
    from diffusers import SanaPipeline as Pipeline

    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return Pipeline(_byte_tokenizer(), _gemma2(), _deep_compression_vae(), _sana(), scheduler)


def SanaSprintPipeline():
    from diffusers import SanaSprintPipeline as Pipeline
    from diffusers import SCMScheduler

    transformer = _sana(guidance_embeds=True, guidance_embeds_scale=0.1, qk_norm="rms_norm_across_heads")
    return Pipeline(_byte_tokenizer(), _gemma2(), _deep_compression_vae(), transformer, SCMScheduler())


def LatentConsistencyModelPipeline():
    from diffusers import LatentConsistencyModelPipeline as Pipeline
    from diffusers import LCMScheduler
    from transformers import CLIPTextModel

    words = _tokenizer()
    text = CLIPTextModel(_text_config(words, 16))
    unet = _unet(16, time_cond_proj_dim=8)
    scheduler = LCMScheduler(**SCALED_LINEAR, clip_sample=False)
    return Pipeline(_vae(4), text, words, unet, scheduler, None, None, requires_safety_checker=False)


def _pixart(pipeline: str):
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=32,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02)
    vae = _vae(4, scaling_factor=0.13025)
    return getattr(diffusers, pipeline)(_byte_tokenizer(), _t5(), vae, transformer, scheduler)


def PixArtAlphaPipeline():
    return _pixart("PixArtAlphaPipeline")


def PixArtSigmaPipeline():
    return _pixart("PixArtSigmaPipeline")


def Lumina2Pipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
    from diffusers import Lumina2Pipeline as Pipeline

    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 64, 64),
        cap_feat_dim=16,
    )
    vae = _vae_of_8(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    return Pipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=6.0), vae, _gemma2(), _byte_tokenizer())


def ChromaPipeline():
    from diffusers import ChromaPipeline as Pipeline
    from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return Pipeline(FlowMatchEulerDiscreteScheduler(), _flow_vae(), _t5(), _byte_tokenizer(), _small(transformer))


def HunyuanDiTPipeline():
    from diffusers import DDPMScheduler, HunyuanDiT2DModel
    from diffusers import HunyuanDiTPipeline as Pipeline
    from transformers import BertConfig, BertModel

    transformer = HunyuanDiT2DModel(
        sample_size=4,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        hidden_size=24,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
    )
    vae = _vae_of_8(scaling_factor=0.13025)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=300, max_position_embeddings=77, **sizes))
    betas = {"beta_start": 0.00085, "beta_end": 0.018, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(**betas, prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    words, words_2 = _byte_tokenizer(77), _byte_tokenizer(256)
    return Pipeline(vae, bert, words, transformer, scheduler, None, None, False, _t5(), words_2)


def _chat_glm_tokenizer():
    """Kolors' own tokenizer, over a sentencepiece model of single letters."""
    from io import BytesIO
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
    from sentencepiece import SentencePieceTrainer

    letters, written = [chr(i) for i in range(33, 127)], BytesIO()
    options = {"model_type": "char", "vocab_size": len(letters) + 4, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter([" ".join(letters)]), model_writer=written, **options)
    folder = TemporaryDirectory()
    file = Path(folder.name) / "tokenizer.model"
    file.write_bytes(written.getvalue())
    words = ChatGLMTokenizer(str(file))
    words.folder = folder  # saving copies the file
    return words


def KolorsPipeline():
    from diffusers import EulerDiscreteScheduler
    from diffusers import KolorsPipeline as Pipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from torch import nn

    words = _chat_glm_tokenizer()
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=128,
        hidden_size=32,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=256,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
    )
    text = ChatGLMModel(config)
    for name, p in text.named_parameters():  # the model leaves them uninitialized
        nn.init.ones_(p) if "norm" in name else nn.init.normal_(p, std=0.05)
    unet = _unet(
        32,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32 + 6 * 4,
    )
    betas = SCALED_LINEAR | {"beta_end": 0.014, "num_train_timesteps": 1100}
    scheduler = EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1)
    return Pipeline(_vae(4, scaling_factor=0.13025), text, words, unet, scheduler)
