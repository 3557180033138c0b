"""Wan 2.1 and the 5B of Wan 2.2: text to video (arXiv 2503.20314)."""

import torch
from torch import Tensor

from lit_align.policies.policy import Policy


class Wan(Policy):
    """A flow transformer on the latents of a video VAE, with UMT5 tokens; text beyond the prompt's end is zeros.

    Latents are (C, f, h, w), videos (F, 3, H, W) with F = 1 + 4 (f - 1) frames. The sampler's steps are Euler's, on the
    grid of the checkpoint's scheduler; diffusers' default, UniPC, is of second order.

    Args:
        frames: F of a video, 1 more than a multiple of 4.
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "WanPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    vae_class = "AutoencoderKLWan"
    patch, image_axes = 2, 4

    def __init__(self, *args, frames: int = 81, max_sequence_length: int = 512, **kwargs):
        self.frames, self.max_sequence_length = frames, max_sequence_length
        super().__init__(*args, **kwargs)
        if self.pipe.config.boundary_ratio is not None:
            raise ValueError("this Wan has two denoisers (boundary_ratio); take Wan 2.1, or 2.2's 5B.")
        self.fingerprint += f" {frames} {max_sequence_length}"

    def default_resolution(self) -> tuple[int, int]:
        size = self.denoiser.config.get("sample_size")
        return (size * self.vae_scale_factor,) * 2 if size else (480, 832)

    @property
    def vae_scale_factor(self) -> int:
        return self.pipe.vae_scale_factor_spatial

    def shape(self) -> tuple[int, ...]:
        channels, h, w = super().shape()
        every = self.pipe.vae_scale_factor_temporal
        if self.frames % every != 1:
            raise ValueError(f"frames: {self.frames} is not 1 more than a multiple of {every}.")
        return (channels, 1 + (self.frames - 1) // every, h, w)

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        text, _ = self.pipe.encode_prompt(prompts, None, False, max_sequence_length=length, device=device)
        return {"text": text}  # (B, L, D)

    def predict(self, x_t, t, cond):
        return self.denoiser(x_t, t * self.process.num_train_timesteps, cond["text"]).sample

    def vae_encode(self, images):
        return super().vae_encode(images.transpose(1, 2))

    def vae_decode(self, z):
        return super().vae_decode(z).transpose(1, 2)
