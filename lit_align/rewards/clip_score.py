"""CLIP as a reward: CLIPScore, and with other weights PickScore."""

import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.reward import Reward


def load_clip(pretrained: str) -> tuple[nn.Module, object]:
    """A transformers CLIPModel and its tokenizer, from a hub id or folder; "tiny" for random weights."""
    if pretrained == "tiny":
        from lit_align.policies import tiny

        return tiny.CLIPModel()
    from transformers import CLIPModel, CLIPTokenizer

    return CLIPModel.from_pretrained(find(pretrained)), CLIPTokenizer.from_pretrained(find(pretrained))


def pixels(model: nn.Module, images: Tensor) -> Tensor:
    """CLIP's input from images (B, 3, H, W) in [0, 1]: shorter side resized to CLIP's size (bicubic), centre cropped,
    normalised; differentiable."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    side, (h, w) = model.config.vision_config.image_size, images.shape[-2:]
    size = [round(length * side / min(h, w)) for length in (h, w)]
    if size != [h, w]:
        images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images[..., top : top + side, left : left + side] - mean) / std


def text_features(model: nn.Module, tokenizer, prompts: list[str]) -> Tensor:
    """CLIP's projected text features (B, D); each distinct prompt is encoded once."""
    unique = list(dict.fromkeys(prompts))
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(unique, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    features = model.get_text_features(input_ids=tokens.input_ids.to(model.device)).pooler_output
    return features[[unique.index(p) for p in prompts]]


class CLIPScore(Reward):
    """logit_scale x cosine of CLIP's image and text features (Radford et al. 2021, arXiv 2103.00020).

    With yuvalkirstain/PickScore_v1 it is PickScore (Kirstain et al. 2023, arXiv 2305.01569), in the unit of its paper
    (about 20).

    Args:
        pretrained: hub id or folder of a CLIPModel.
        name: in logs.
    """

    differentiable = True

    def __init__(self, pretrained: str = "yuvalkirstain/PickScore_v1", name: str = "pickscore"):
        super().__init__()
        self.model, self.tokenizer = load_clip(pretrained)
        self.name = name

    def embed(self, images: Tensor) -> Tensor:
        """CLIP's projected image features of unit length, (B, D)."""
        features = self.model.get_image_features(pixel_values=pixels(self.model, images.float())).pooler_output
        return F.normalize(features, dim=1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        text = text_features(self.model, self.tokenizer, prompts)
        return self.model.logit_scale.exp() * F.cosine_similarity(self.embed(images), text)
