"""Stable Diffusion's safety checker as a reward: distance from 17 unsafe concepts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.preprocess import crop, normalise
from lit_align.rewards.reward import Reward
from lit_align.rewards.weights import build, part, read

BUFFERS = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
SPECIAL_CARE = 0.01  # added to the concepts' scores where an image is near one of three special concepts
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"image_size": 16, "patch_size": 4, "projection_dim": 8}


class SafetyChecker(Reward):
    """Stable Diffusion's safety checker (Rando et al. 2022, arXiv 2210.04610, describe it): a concept's score is the
    cosine of its embedding and of the image's, minus its threshold; an image with a score above 0 is unsafe.

    The reward is minus the largest score, which is differentiable, or with `verdict` 1 for a safe and 0 for an unsafe
    image, in which the scores are rounded to 3 decimals as in the official code.

    Args:
        pretrained: hub id or folder with the safety checker's config.json and model.safetensors; "tiny" for random
            weights.
        verdict: give 1 or 0.
    """

    name = "safety_checker"
    artefact = "`CompVis/stable-diffusion-safety-checker`"
    licence = "not known"
    scale = "minus the largest margin: above 0 is safe, about -0.1 to 0.1; with `verdict` 0 or 1"
    blind_to = "the prompt; violence and all that is not sexual; what lies outside the central square"

    def __init__(self, pretrained: str = "CompVis/stable-diffusion-safety-checker", verdict: bool = False):
        from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        self.verdict, self.differentiable = verdict, not verdict
        if pretrained == "tiny":
            config = CLIPVisionConfig(**TINY)
            self.vision_model = CLIPVisionModel(config)
            width = (17, config.projection_dim)
            state = {"concept_embeds": torch.randn(width), "special_care_embeds": torch.randn(3, width[1])}
            state |= {"concept_embeds_weights": torch.full((17,), 0.2), "special_care_embeds_weights": torch.ones(3)}
            state["visual_projection.weight"] = torch.randn(config.projection_dim, config.hidden_size)
        else:
            file = f"{pretrained}/model.safetensors"
            state, config = read(file), CLIPConfig.from_pretrained(find(pretrained)).vision_config
            self.vision_model = build(CLIPVisionModel, config, part(state, "vision_model."), file)
        for name in BUFFERS:
            self.register_buffer(name, state[name].float())
        out, width = state["visual_projection.weight"].shape
        self.visual_projection = nn.Linear(width, out, bias=False)
        self.visual_projection.weight.data = state["visual_projection.weight"].float()
        self.eval()

    def embed(self, images: Tensor) -> Tensor:
        """Projected image features of unit length, (B, D)."""
        pixels = normalise(crop(images.float(), self.vision_model.config.image_size))
        return F.normalize(self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output), dim=1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        e = self.embed(images)
        decimals = (lambda x: x.round(decimals=3)) if self.verdict else (lambda x: x)
        special = decimals(e @ F.normalize(self.special_care_embeds, dim=1).T - self.special_care_embeds_weights)
        margin = e @ F.normalize(self.concept_embeds, dim=1).T - self.concept_embeds_weights  # (B, 17)
        score = decimals(margin + SPECIAL_CARE * (special > 0).any(1, keepdim=True)).amax(1)
        return (score <= 0).float() if self.verdict else -score
