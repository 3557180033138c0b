"""Stable Diffusion 1.x and 2.x."""

import torch
from torch import Tensor

from lit_align.policies import guidance_input
from lit_align.policies.attention import token_spans
from lit_align.policies.policy import Policy


class StableDiffusion(Policy):
    """A UNet with one CLIP text encoder (arXiv 2112.10752); epsilon or v prediction, as its scheduler says.

    Args:
        distilled_guidance: the scale that a UNet distilled with one (an LCM's) is given (default: 8).
    """

    pipeline_class = "StableDiffusionPipeline"
    denoiser_name = "unet"
    encoder_names = ("text_encoder",)

    def __init__(self, *args, distilled_guidance: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.distilled_guidance = guidance_input.resolve(self.denoiser, distilled_guidance)

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        text, _ = self.pipe.encode_prompt(prompts, device, 1, False)
        return {"text": text}  # (B, L, D)

    def spans(self, prompt):
        return token_spans(self.pipe.tokenizer, prompt, self.pipe.tokenizer.model_max_length)

    def predict(self, x_t, t, cond):
        guidance = guidance_input.embedding(self.denoiser, self.distilled_guidance, x_t)
        return self.denoiser(x_t, t, cond["text"], timestep_cond=guidance).sample
