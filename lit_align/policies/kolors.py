"""Kolors (Kuaishou 2024): SDXL's UNet with the tokens of a ChatGLM3."""

import torch
from torch import Tensor

from lit_align.policies.sdxl import StableDiffusionXL


class Kolors(StableDiffusionXL):
    """A UNet with 256 tokens of a ChatGLM3, English or Chinese, its last token's embedding, and SDXL's size and crop
    conditioning. Its process has 1100 timesteps. The tokenizer needs `pip install 'lit-align[kolors]'`."""

    pipeline_class = "KolorsPipeline"
    encoder_names = ("text_encoder",)

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(prompts, device, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled, "time_ids": self.time_ids(len(prompts))}  # (B, L, D), (B, D), (B, 6)
