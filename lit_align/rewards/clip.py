"""CLIP as the model of a reward: loading it, in transformers' and in open_clip's format, and its features."""

import os
import re
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.policies import published
from lit_align.rewards.preprocess import crop, normalise
from lit_align.rewards.reward import Reward
from lit_align.rewards.tokens import tokenize
from lit_align.rewards.weights import build, read

NAMES = (  # of open_clip and OpenAI's CLIP -> of transformers' CLIPModel
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # transformers' spelling
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
)
NO_WEIGHTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # entries of such files


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a CLIP under the names of transformers' CLIPModel, from those of open_clip or OpenAI's CLIP.

    Projections are transposed, and the joint projection of queries, keys and values is split.
    """
    renamed = {}
    for name, value in state.items():
        if name in NO_WEIGHTS:
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if name in ("visual_projection.weight", "text_projection.weight"):
            value = value.T
        if joint := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name):
            renamed |= {f"{joint[1]}.{x}_proj.{joint[2]}": v for x, v in zip("qkv", value.chunk(3))}
        else:
            renamed[name] = value
    return renamed


def load_clip(pretrained: str, tokenizer: str | None = None) -> tuple[nn.Module, object]:
    """A transformers CLIPModel in float32 and its tokenizer, from hub ids or folders; "tiny" for random weights."""
    if pretrained == "tiny":
        from lit_align.policies import tiny

        return tiny.CLIPModel()
    if pretrained.startswith(published.WEIGHTLESS):
        return published.weightless_clip(pretrained.removeprefix(published.WEIGHTLESS))
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(find(pretrained), dtype=torch.float32)
    return model, CLIPTokenizer.from_pretrained(find(tokenizer or pretrained))


def load_open_clip(checkpoint: str | None, pretrained: str) -> tuple[nn.Module, object]:
    """A CLIPModel with the weights of a file of open_clip or OpenAI's CLIP, and its tokenizer. `pretrained` gives the
    configuration and the tokenizer, and without a checkpoint the weights, too."""
    if checkpoint is None:
        return load_clip(pretrained)
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    config = CLIPConfig.from_pretrained(find(pretrained))
    model = build(CLIPModel, config, from_open_clip(read(checkpoint)), checkpoint)
    return model, CLIPTokenizer.from_pretrained(find(pretrained))


def pixels(model: nn.Module, images: Tensor) -> Tensor:
    """CLIP's input, (B, 3, side, side), from images (B, 3, H, W) in [0, 1]: the central square."""
    return normalise(crop(images, model.config.vision_config.image_size))


def text_features(reader: nn.Module, prompts: list[str]) -> Tensor:
    """CLIP's projected text features (B, D) for a reward or step reward with `model` and `tokenizer`; each distinct
    prompt is encoded once."""
    model = reader.model
    tokens = tokenize(reader, reader.tokenizer, prompts, model.config.text_config.max_position_embeddings)
    ids, rows = tokens.input_ids.unique(dim=0, return_inverse=True)
    return model.get_text_features(input_ids=ids.to(model.device)).pooler_output[rows.to(model.device)]


class CLIPReward(Reward):
    """Base of the rewards that are a factor times the cosine of CLIP's image and text features."""

    differentiable, text_limit = True, 77
    blind_to = "what lies outside the central square; counts, positions, which object has which attribute"

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer

    @property
    def factor(self) -> float | Tensor:
        """What the cosine is multiplied by."""
        return 1.0

    def pixels(self, images: Tensor) -> Tensor:
        """The image tower's input."""
        return pixels(self.model, images)

    def embed(self, images: Tensor) -> Tensor:
        """CLIP's projected image features of unit length, (B, D)."""
        features = self.model.get_image_features(pixel_values=self.pixels(images.float())).pooler_output
        return F.normalize(features, dim=1)

    def save(self, folder: str) -> dict:
        """Writes a transformers CLIPModel and its tokenizer."""
        os.makedirs(folder, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        found = {"checkpoint": None, "pretrained": folder, "tokenizer": folder}
        return {name: value for name, value in found.items() if name in signature(type(self).__init__).parameters}

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.factor * (self.embed(images) * F.normalize(text_features(self, prompts), dim=1)).sum(1)
