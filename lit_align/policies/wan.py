"""Wan 2.1 and the 5B of Wan 2.2: text to video (arXiv 2503.20314)."""

import torch
from torch import Tensor

from lit_align.policies.video import Video


class Wan(Video):
    """A flow transformer on the latents of a video VAE, with UMT5 tokens; text beyond the prompt's end is zeros.

    Latents have f = 1 + (F - 1) / 4 frames. The sampler's steps are Euler's, on the grid of the checkpoint's scheduler;
    diffusers' default, UniPC, is of second order. Wan 2.1 makes 81 frames at 16 a second, the 5B 121 at 24.

    Args:
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "WanPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    vae_class = "AutoencoderKLWan"
    patch = 2

    def __init__(self, *args, num_frames: int = 81, max_sequence_length: int = 512, **kwargs):
        self.max_sequence_length = max_sequence_length
        super().__init__(*args, num_frames=num_frames, **kwargs)
        if self.pipe.config.boundary_ratio is not None:
            raise ValueError("this Wan has two denoisers (boundary_ratio); take Wan 2.1, or 2.2's 5B.")
        self.fingerprint += f" {max_sequence_length}"

    def default_fps(self) -> float:
        return 24 if self.pipe.config.expand_timesteps else 16

    def default_resolution(self) -> tuple[int, int]:
        size = self.denoiser.config.get("sample_size")
        whole = (704, 1280) if self.pipe.config.expand_timesteps else (480, 832)
        return (size * self.vae_scale_factor,) * 2 if size else whole

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        text, _ = self.pipe.encode_prompt(prompts, None, False, max_sequence_length=length, device=device)
        return {"text": text}  # (B, L, D)

    def predict(self, x_t, t, cond):
        return self.denoiser(x_t, t * self.process.num_train_timesteps, cond["text"]).sample
