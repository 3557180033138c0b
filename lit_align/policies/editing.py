"""What the families of image editors share."""

import torch
from torch import Tensor

from lit_align.policies.policy import Policy


class Editing(Policy):
    """Base of the families that edit an image: the column `source` of a prompt's row, an image (3, H, W) in [0, 1] of
    the policy's size. Its latents are the conditioning's `source`, beside the text. Stands before the family whose text
    and denoiser it has."""

    reads = ("source",)

    def embed_text(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        """The conditioning of prompts alone."""
        return super().embed(prompts, device)

    def embed(self, prompts: list[str], device: torch.device, source: list[Tensor]) -> dict[str, Tensor]:
        return self.embed_text(prompts, device) | {"source": self.source_latents(source)}

    def source_latents(self, source: list[Tensor]) -> Tensor:
        """Latents (B, C, h, w) of the images: the posterior's mode."""
        return self.encode(torch.stack(source), mode=True)

    def unconditional(self) -> dict[str, Tensor]:
        return self.embed_text([""], self._place(self._encoders(), encoder=not self.trains_text))


def to_pil(image: Tensor):
    """An image (3, H, W) in [0, 1] as a PIL image of 8 bits, as vision-language models take it."""
    from PIL import Image

    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())
