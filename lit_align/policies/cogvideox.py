"""CogVideoX: 2B and 5B (arXiv 2408.06072)."""

import torch
from torch import Tensor

from lit_align.policies.video import Video


class CogVideoX(Video):
    """A transformer on the latents of a video VAE, with T5 tokens of a fixed number; v prediction with zero SNR at its
    end. The 5B has rotary places."""

    pipeline_class = "CogVideoXPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    vae_class = "AutoencoderKLCogVideoX"
    patch = 2

    def __init__(self, *args, num_frames: int = 49, **kwargs):
        super().__init__(*args, num_frames=num_frames, **kwargs)
        if self.denoiser.config.patch_size_t:
            raise ValueError("this is CogVideoX 1.5, whose tokens span two latent frames; take CogVideoX 2B or 5B.")
        if self.latent_shape[1] % 2 == 0:  # the VAE then decodes three frames too many
            every = 2 * getattr(self.pipe, self.temporal)
            raise ValueError(f"num_frames: {num_frames} is not 1 more than a multiple of {every}.")

    def default_resolution(self) -> tuple[int, int]:
        config = self.denoiser.config
        return (config.sample_height * self.vae_scale_factor, config.sample_width * self.vae_scale_factor)

    @property
    def max_sequence_length(self) -> int:
        return self.denoiser.config.max_text_seq_length

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        text, _ = self.pipe.encode_prompt(prompts, None, False, max_sequence_length=length, device=device)
        return {"text": text}  # (B, L, D)

    def predict(self, x_t, t, cond):
        places = None
        if self.denoiser.config.use_rotary_positional_embeddings:
            size = (self.height, self.width, x_t.shape[2], x_t.device)
            places = self.pipe._prepare_rotary_positional_embeddings(*size)
        frames_first = x_t.transpose(1, 2)
        return self.denoiser(frames_first, cond["text"], t, image_rotary_emb=places).sample.transpose(1, 2)
