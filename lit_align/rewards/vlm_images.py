"""What the image processors of vision-language models do, on tensors: differentiable in the images."""

import torch
from torch import Tensor

from lit_align.rewards.preprocess import CLIP_MEAN, normalise, pad_to_square, resize


def smart_size(processor, height: int, width: int) -> tuple[int, int]:
    """Qwen's size of an image: sides that are multiples of a merged patch, area between the processor's bounds."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    low, high = processor.size["shortest_edge"], processor.size["longest_edge"]
    return smart_resize(height, width, processor.patch_size * processor.merge_size, low, high)


def patches(processor, images: Tensor) -> tuple[Tensor, Tensor]:
    """What Qwen's image processor makes of images (N, 3, H, W) in [0, 1], differentiable: flat patches of all images
    (N g_h g_w, 3 T p p), merged patches side by side, and the grid (1, g_h, g_w) of each, (N, 3)."""
    size, p, m = smart_size(processor, *images.shape[-2:]), processor.patch_size, processor.merge_size
    x = normalise(resize(images.float(), size).clamp(0, 1), processor.image_mean, processor.image_std)
    n, h, w = len(x), size[0] // p, size[1] // p
    x = x.view(n, 3, h // m, m, p, w // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(*x.shape[:6], processor.temporal_patch_size, p, p)  # a picture is a still film
    return x.reshape(n * h * w, -1), torch.tensor([[1, h, w]], device=x.device).expand(n, 3)


def square(images: Tensor, side: int) -> Tensor:
    """CLIP's input from whole images (N, 3, H, W) in [0, 1]: padded to a square with CLIP's mean colour, in 8 bits as
    released, resized (bicubic), normalised."""
    colour = tuple(int(255 * mean) / 255 for mean in CLIP_MEAN)
    return normalise(resize(pad_to_square(images.float(), colour), (side, side)).clamp(0, 1))
