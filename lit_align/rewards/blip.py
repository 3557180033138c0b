"""BLIP as the model of a reward: its text encoder reads the prompt while it attends to the image."""

import json
import math
import os
import re

import torch
from torch import Tensor, nn

from lit_align.paths import fetch, find
from lit_align.policies import published
from lit_align.rewards.preprocess import crop, normalise
from lit_align.rewards.reward import Reward
from lit_align.rewards.tokens import tokenize
from lit_align.rewards.weights import build, fill, part, read

VISION_NAMES = (  # of the published files, after timm -> of transformers' BlipVisionModel
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"^norm\.", "post_layernorm."),
)
PUBLISHED_NAMES = (  # the other way
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"^post_layernorm\.", "norm."),
)
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SIZES += ("max_position_embeddings", "layer_norm_eps", "hidden_act")
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
HEAD_WIDTH = 64  # of a vision transformer's attention head, in every published size
TINY_VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
TINY_VISION |= {"image_size": 32, "patch_size": 16}
TINY_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def vision_config(state: dict[str, Tensor]) -> dict:
    """The vision transformer's sizes, from its tensors under their published names."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": len(state["blocks.0.mlp.fc1.weight"]),
        "num_hidden_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": math.isqrt(state["pos_embed"].shape[1] - 1) * patch,
        "patch_size": patch,
    }


def text_config(file: str) -> dict:
    """The text encoder's sizes and dropout, from the published med_config.json."""
    with open(fetch(file)) as opened:
        given = json.load(opened)
    return {name: given[name] for name in SIZES} | {name: given.get(name, 0.0) for name in DROPOUT}


class BLIPReward(Reward):
    """Base of the rewards in which an MLP scores the first token of BLIP's text encoder: ViT-L/16 for the image, BERT
    with cross-attention for the prompt.

    Args:
        pretrained: hub id or folder with the published weights and med_config.json; "tiny" for random weights.
        tokenizer: hub id or folder of BERT's tokenizer.
        blip: to train from BLIP: a file of its pre-trained weights (`model_large.pth`), in place of those of
            `pretrained`. The MLP is then drawn at random.
    """

    file: str  # the published weights
    differentiable = True
    blind_to = "what lies outside the central square, and detail, as it has 224 pixels; the end of long prompts"

    def __init__(self, pretrained: str, tokenizer: str, file: str, head, blip: str | None = None):
        super().__init__()
        self.file, config = file, f"{pretrained}/med_config.json"
        if pretrained == "tiny":
            self._random(head)
        elif pretrained.startswith(published.WEIGHTLESS):
            self._weightless(head)
        elif blip:
            self._load(blip, {f"blip.{name}": value for name, value in read(blip).items()}, config, tokenizer, head)
            for name, p in self.mlp.named_parameters():  # as the official code does
                nn.init.normal_(p, std=1 / (self.text.config.hidden_size + 1)) if "weight" in name else nn.init.zeros_(
                    p
                )
        else:
            weights = f"{pretrained}/{file}"
            self._load(weights, read(weights), config, tokenizer, head)
            fill(self.mlp, part(read(weights), "mlp.layers."), weights)
        self.eval()

    @staticmethod
    def configs(vision: dict, text: dict) -> tuple:
        from transformers import BlipTextConfig, BlipVisionConfig

        vision = BlipVisionConfig(**vision, layer_norm_eps=1e-6)
        return vision, BlipTextConfig(**text, encoder_hidden_size=vision.hidden_size, bos_token_id=0, sep_token_id=0)

    def _random(self, head) -> None:
        from transformers import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        from lit_align.policies import tiny

        self.tokenizer = tiny.CLIPModel()[1]
        vision, text = self.configs(TINY_VISION, TINY_TEXT | {"vocab_size": len(self.tokenizer)})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.vision, self.text = BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)
            self.mlp = head(text.hidden_size)

    def _weightless(self, head) -> None:
        """ImageReward's sizes, without weights."""
        from transformers import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        from lit_align.policies import tiny

        sizes = json.loads((published.configs_of("THUDM/ImageReward") / "config.json").read_text())
        vision, text = self.configs(sizes["vision_config"], sizes["text_config"])
        self.tokenizer = tiny.CLIPModel()[1]
        self.vision = published.stand_in(published.built(BlipVisionModel, vision), "reward")
        self.text = published.stand_in(published.built(BlipTextModel, text, add_pooling_layer=False), "reward")
        self.mlp = head(text.hidden_size)

    def _load(self, weights: str, state: dict[str, Tensor], config: str, tokenizer: str, head) -> None:
        from transformers import BertTokenizer, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        seen = part(state, "blip.visual_encoder.")
        vision, text = self.configs(vision_config(seen), text_config(config))
        for pattern, replacement in VISION_NAMES:
            seen = {re.sub(pattern, replacement, name): value for name, value in seen.items()}
        self.vision = build(BlipVisionModel, vision, seen, weights)
        self.text = build(BlipTextModel, text, part(state, "blip.text_encoder."), weights, add_pooling_layer=False)
        self.mlp = head(text.hidden_size)
        self.tokenizer = BertTokenizer.from_pretrained(find(tokenizer))

    def save(self, folder: str) -> dict:
        """Writes the weights and med_config.json under their published names, and the tokenizer."""
        os.makedirs(folder, exist_ok=True)
        state = {f"blip.text_encoder.{name}": value for name, value in self.text.state_dict().items()}
        state |= {f"mlp.layers.{name}": value for name, value in self.mlp.state_dict().items()}
        for name, value in self.vision.state_dict().items():
            for pattern, replacement in PUBLISHED_NAMES:
                name = re.sub(pattern, replacement, name)
            state[f"blip.visual_encoder.{name}"] = value
        torch.save(state, os.path.join(folder, self.file))
        config = self.text.config.to_dict()
        with open(os.path.join(folder, "med_config.json"), "w") as file:
            json.dump({name: config[name] for name in (*SIZES, *DROPOUT)}, file)
        self.tokenizer.save_pretrained(folder)
        return {"pretrained": folder, "tokenizer": folder}

    def raw(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The MLP's number for each image, (N,)."""
        seen = self.vision(normalise(crop(images, self.vision.config.image_size))).last_hidden_state  # (N, 197, 1024)
        tokens = tokenize(self, self.tokenizer, prompts, self.text_limit).to(images.device)
        read = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            is_decoder=False,
        )
        return self.mlp(read.last_hidden_state[:, 0]).squeeze(1)
