"""Qwen-Image (arXiv 2508.02324)."""

import torch
from torch import Tensor

from lit_align.policies.adapters import joint_attention
from lit_align.policies.packing import pack, unpack
from lit_align.policies.policy import Policy


class QwenImage(Policy):
    """A flow transformer on 2 x 2 squares of latents, with the tokens of a Qwen2.5-VL; texts differ in length. Guidance
    leads away from a blank and keeps the conditional prediction's norm in every square, as in diffusers.

    Args:
        max_sequence_length: tokens of the text, at most 1024.
    """

    pipeline_class = "QwenImagePipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    vae_class = "AutoencoderKLQwenImage"
    grid = "inverse"
    patch, packs = 2, True
    text_first = True

    def __init__(self, *args, max_sequence_length: int = 512, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_sequence_length = max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    @property
    def lora_targets(self) -> tuple[str, ...]:
        return joint_attention(self.denoiser.config.num_layers)

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        text, mask = self.pipe.encode_prompt(prompts, device=device, max_sequence_length=length)
        mask = torch.ones(text.shape[:2], device=text.device) if mask is None else mask  # none: all texts are as long
        return {"text": text, "mask": mask.bool()}  # (B, L, D), (B, L)

    def unconditional(self) -> dict[str, Tensor]:
        return self.condition([" "])

    def predict(self, x_t, t, cond):
        h, w = x_t.shape[2:]
        sizes = [[(1, h // 2, w // 2)]] * len(x_t)
        return unpack(self.denoiser(pack(x_t), cond["text"], cond["mask"], t, sizes).sample, h, w)

    def guided(self, null, cond, w):
        mixed = pack(super().guided(null, cond, w))
        norm = pack(cond).norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)
        return unpack(mixed * norm, *cond.shape[2:])

    def vae_encode(self, images, mode=False):  # a video VAE: one frame
        return super().vae_encode(images[:, :, None], mode)[:, :, 0]

    def vae_decode(self, z):
        return super().vae_decode(z[:, :, None])[:, :, 0]
