"""InstructPix2Pix: edits an image by an instruction (arXiv 2211.09800)."""

import torch
from torch import Tensor

from lit_align.policies.editing import Editing
from lit_align.policies.stable_diffusion import StableDiffusion


class InstructPix2Pix(Editing, StableDiffusion):
    """Stable Diffusion with 8 channels: those of the image that is edited (unscaled) beside those of the image that is
    made.

    Guidance has two scales (eq. 3): the sampler's guidance_scale w for the text, and one for the image,

        e = e(0, 0) + s (e(image, 0) - e(0, 0)) + w (e(image, text) - e(image, 0)),

    three forwards, as long as w is not 1.

    Args:
        image_guidance_scale: s.
    """

    pipeline_class = "StableDiffusionInstructPix2PixPipeline"

    def __init__(self, *args, image_guidance_scale: float = 1.5, **kwargs):
        self.image_guidance_scale = image_guidance_scale
        super().__init__(*args, **kwargs)

    def shape(self) -> tuple[int, ...]:
        channels, h, w = super().shape()
        return (channels - self.latent_channels(), h, w)

    def embed_text(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        text = self.pipe._encode_prompt(prompts, device, 1, False)
        return {"text": text}  # (B, L, D)

    @torch.no_grad()
    def source_latents(self, source: list[Tensor]) -> Tensor:
        vae = self.pipe.vae
        device = self._place([vae.encoder, vae.quant_conv])
        with torch.autocast(device.type, enabled=False):
            return self.vae_encode((torch.stack(source) * 2 - 1).to(device, vae.dtype), mode=True).float()

    def predict(self, x_t, t, cond):
        return self.denoiser(torch.cat([x_t, cond["source"]], 1), t, cond["text"]).sample

    def branches(self, x_t, t, cond, null=None):
        """Two predictions whose guidance by w is guidance by both scales: (s - 1) (e(image, 0) - e(0, 0)) is added to
        each."""
        null = self.null_of(cond) if null is None else cond | null
        blank = null | {"source": torch.zeros_like(cond["source"])}
        both = {name: torch.cat([blank[name], null[name], cond[name]]) for name in cond}
        none, image, text = self.denoise(torch.cat([x_t] * 3), torch.cat([t] * 3), both).chunk(3)
        extra = (self.image_guidance_scale - 1) * (image - none)
        return image + extra, text + extra
