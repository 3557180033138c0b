"""File size as a reward: DDPO's compressibility."""

import io

import torch
from torch import Tensor

from lit_align.rewards.reward import Reward


class JPEGCompressibility(Reward):
    """Minus the size of the image as a JPEG of quality 95, in kilobytes of 1000 bytes (Black et al. 2023, arXiv
    2305.13301, section 5.1).

    Args:
        incompressibility: the reward is plus the size.
    """

    differentiable = False
    artefact = "none: PIL's encoder"
    scale = "kB; an image of 512 pixels has 5 to 300"
    blind_to = "the prompt, and all but the size of the file"

    def __init__(self, incompressibility: bool = False):
        super().__init__()
        self.sign = 1 if incompressibility else -1
        self.name = "incompressibility" if incompressibility else "compressibility"

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        from PIL import Image

        sizes = []
        for image in (images.float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=95)
            sizes.append(len(buffer.getvalue()) / 1000)
        return self.sign * torch.tensor(sizes, device=images.device)
