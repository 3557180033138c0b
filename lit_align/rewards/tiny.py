"""Tiny judges with random weights in the layout of the real ones, for smoke runs and tests: `pretrained: tiny`."""

from lit_align.policies.tiny_transformers import SMALL_DECODER, _byte_tokenizer

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QUESTION = "Rate this image of {prompt}."  # in place of a published question


def seeded(make):
    """What `make()` builds from random weights, the same every time, in eval mode and without gradient."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def qwen(kind: str = "Qwen2_5_VL"):
    """A Qwen2VL, Qwen2_5_VL or Qwen3VL of two layers, its tokenizer (a token per byte; yes and no are one) and its
    image processor."""
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = _byte_tokenizer(32_768)
    words.padding_side, words.chat_template = "left", CHAT
    words.add_special_tokens({"additional_special_tokens": list(MARKS)})
    words.add_tokens(["Yes", "yes", "No", "no"])
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default", "rope_theta": 1e6}
    text = SMALL_DECODER | {
        "num_hidden_layers": 2,
        "head_dim": 8,
        "rope_scaling": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "intermediate_size": 32,
    }
    vision |= {
        "Qwen2VL": {"embed_dim": 16, "mlp_ratio": 2},
        "Qwen2_5_VL": {"out_hidden_size": 16, "window_size": 16, "fullatt_block_indexes": [1]},
        "Qwen3VL": {"out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    }[kind]
    ids = {
        f"{name}_token_id": words.convert_tokens_to_ids(mark)
        for name, mark in zip(("vision_start", "vision_end", "image", "video"), MARKS[2:])
    }
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **ids
    )
    model = seeded(lambda: getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=16**2, max_pixels=32**2)
    return model, words, pictures


def speak(vlm, answers: list[str]) -> None:
    """Makes every answer of a tiny model one of these; which, its logits say."""
    vlm.tokenizer.add_tokens(answers)
    ids = vlm.tokenizer.convert_tokens_to_ids(answers)
    vlm.model.resize_token_embeddings(max(ids) + 1)
    config = vlm.model.generation_config
    config.sequence_bias, config.eos_token_id = [[[i], 100.0] for i in ids], ids


def clip_flant5(cls):
    """A CLIP-FlanT5 of two layers for 16 x 16 images, of the class `cls`, and its tokenizer (yes is one token)."""
    import tempfile

    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPVisionConfig, T5Config

    words = _byte_tokenizer(2048)
    words.add_tokens(["Yes"])
    end = ("</s>", words.eos_token_id)
    words.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with tempfile.TemporaryDirectory() as folder:
        CLIPVisionConfig(**sizes, image_size=16, patch_size=4).save_pretrained(folder)
        small = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = T5Config(**small, feed_forward_proj="gated-gelu", tie_word_embeddings=False, mm_vision_tower=folder)
        config.decoder_start_token_id = 0
        return seeded(lambda: cls(config)), words


def owl(cls):
    """An mPLUG-Owl2 of two layers for 16 x 16 images, of the class `cls`, with LLaMA-2's vocabulary."""
    from torch import nn
    from transformers import LlamaConfig

    both = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "layer_norm_eps": 1e-6}
    eyes = {**both, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
    abstractor = {
        **both,
        "intermediate_size": 24,
        "encoder_hidden_size": 16,
        "num_learnable_queries": 3,
        "grid_size": 4,
    }
    small = SMALL_DECODER | {"vocab_size": 32_000, "num_hidden_layers": 2}
    config = LlamaConfig(**small, visual_config={"visual_model": eyes, "visual_abstractor": abstractor})

    def random():
        model = cls(config)
        for tensor in (
            *model.model.vision_model.state_dict().values(),
            *model.model.visual_abstractor.state_dict().values(),
        ):
            nn.init.normal_(tensor, std=0.2)
        return model

    return seeded(random)
