"""Sana (arXiv 2410.10629)."""

from inspect import signature

import torch
from torch import Tensor

from lit_align.policies import templates
from lit_align.policies.policy import Policy


class Sana(Policy):
    """A flow transformer with linear attention on latents of 32 x 32 pixels, with the tokens of a Gemma 2. The prompt
    stands behind an instruction to the language model, the one of diffusers.

    The sampler's steps are Euler's, on the grid of the checkpoint's scheduler; diffusers' default, DPM-Solver++, is of
    second order.

    Args:
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "SanaPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    vae_class = "AutoencoderDC"

    def __init__(self, *args, max_sequence_length: int = 300, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_sequence_length = max_sequence_length
        self.instruction = signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        self.fingerprint += f" {max_sequence_length}"

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        options = {"max_sequence_length": self.max_sequence_length, "complex_human_instruction": self.instruction}
        text, mask = templates.encode(self.pipe, prompts, device=device, **options)
        return {"text": text, "mask": mask}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        t = t * self.process.num_train_timesteps * self.denoiser.config.timestep_scale
        return self.denoiser(x_t, cond["text"], t, encoder_attention_mask=cond["mask"]).sample
