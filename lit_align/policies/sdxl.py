"""Stable Diffusion XL."""

import torch
from torch import Tensor

from lit_align.policies import guidance_input
from lit_align.policies.attention import token_spans
from lit_align.policies.policy import Policy


class StableDiffusionXL(Policy):
    """A UNet with two CLIP text encoders, a pooled embedding, and size and crop conditioning (arXiv 2307.01952).

    Time ids are [H, W, 0, 0, H, W] for every image, as in Diffusion-DPO's official code and at sampling. Dropped
    captions are the encoded empty string; guidance leads away from zeros where the pipeline says so
    (force_zeros_for_empty_prompt).

    Args:
        distilled_guidance: the scale that a UNet distilled with one (an LCM's) is given (default: 8).
    """

    pipeline_class = "StableDiffusionXLPipeline"
    denoiser_name = "unet"
    encoder_names = ("text_encoder", "text_encoder_2")

    def __init__(self, *args, distilled_guidance: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.distilled_guidance = guidance_input.resolve(self.denoiser, distilled_guidance)

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled, "time_ids": self.time_ids(len(prompts))}  # (B, L, D), (B, D'), (B, 6)

    def time_ids(self, n: int) -> Tensor:
        """n rows [H, W, 0, 0, H, W], float32."""
        size = [self.height, self.width]
        return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).expand(n, -1)

    def unconditional(self) -> dict[str, Tensor]:
        null = super().unconditional()
        if self.pipe.config.force_zeros_for_empty_prompt:
            null |= {k: torch.zeros_like(null[k]) for k in ("text", "pooled")}
        return null

    def spans(self, prompt):
        return token_spans(self.pipe.tokenizer, prompt, self.pipe.tokenizer.model_max_length)

    def predict(self, x_t, t, cond):
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
        guidance = guidance_input.embedding(self.denoiser, self.distilled_guidance, x_t)
        return self.denoiser(x_t, t, cond["text"], timestep_cond=guidance, added_cond_kwargs=added).sample
