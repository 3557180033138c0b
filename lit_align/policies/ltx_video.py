"""LTX-Video (arXiv 2501.00103)."""

import torch
from torch import Tensor

from lit_align.policies.video import Video


class LTXVideo(Video):
    """A flow transformer on strongly compressed latents (8 frames of 32 x 32 pixels to one), with T5 tokens; it is told
    the frame rate. A VAE that takes a noise level is given 0, as in diffusers.

    Args:
        max_sequence_length: tokens of the T5 text.
    """

    pipeline_class = "LTXPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    vae_class = "AutoencoderKLLTXVideo"
    grid = "inverse"
    temporal, spatial = "vae_temporal_compression_ratio", "vae_spatial_compression_ratio"

    def __init__(self, *args, num_frames: int = 161, max_sequence_length: int = 128, **kwargs):
        super().__init__(*args, num_frames=num_frames, **kwargs)
        self.max_sequence_length = max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    def default_fps(self) -> float:
        return 25

    def default_resolution(self) -> int | tuple[int, int]:
        return super().default_resolution() if "sample_size" in self.denoiser.config else (512, 704)

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        text, mask, _, _ = self.pipe.encode_prompt(prompts, None, False, max_sequence_length=length, device=device)
        return {"text": text, "mask": mask.bool()}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        size, side = x_t.shape[2:], self.vae_scale_factor
        scale = (getattr(self.pipe, self.temporal) / self.fps, side, side)
        tokens, time = x_t.flatten(2).transpose(1, 2), t * self.process.num_train_timesteps
        out = self.denoiser(tokens, cond["text"], time, cond["mask"], *size, rope_interpolation_scale=scale).sample
        return out.transpose(1, 2).unflatten(2, size)

    def vae_decode(self, z: Tensor) -> Tensor:
        level = z.new_zeros(len(z)) if self.pipe.vae.config.timestep_conditioning else None
        return self.pipe.vae.decode(z, level).sample.transpose(1, 2)
