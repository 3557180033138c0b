"""Lumina-Image 2.0 (arXiv 2503.21758)."""

import torch
from torch import Tensor

from lit_align.policies import templates
from lit_align.policies.policy import Policy


class Lumina2(Policy):
    """A flow transformer on image and text tokens in one stream, with the tokens of a Gemma 2 behind a system prompt.
    The network counts time from noise to data and predicts x_0 - eps. Guidance keeps the conditional prediction's norm
    in every row of latents, as in diffusers.

    Args:
        max_sequence_length: tokens of the text, the system prompt included.
        system_prompt: what stands before a prompt (default: diffusers').
    """

    pipeline_class = "Lumina2Pipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    grid = "inverse"
    patch = 2

    def __init__(self, *args, max_sequence_length: int = 256, system_prompt: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_sequence_length, self.system_prompt = max_sequence_length, system_prompt
        self.fingerprint += f" {max_sequence_length} {system_prompt}"

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        options = {"max_sequence_length": self.max_sequence_length, "system_prompt": self.system_prompt}
        text, mask = templates.encode(self.pipe, prompts, device=device, **options)
        return {"text": text, "mask": mask}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        return -self.denoiser(x_t, 1 - t, cond["text"], cond["mask"]).sample

    def guided(self, null, cond, w):
        mixed = super().guided(null, cond, w)
        return mixed * cond.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)
