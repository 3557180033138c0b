"""What the image processors of vision-language models do, on tensors: differentiable in the images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def smart_size(processor, height: int, width: int) -> tuple[int, int]:
    """Qwen's size of an image: sides that are multiples of a merged patch, area between the processor's bounds."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    low, high = processor.size["shortest_edge"], processor.size["longest_edge"]
    return smart_resize(height, width, processor.patch_size * processor.merge_size, low, high)


def patches(processor, images: Tensor) -> tuple[Tensor, Tensor]:
    """What Qwen's image processor makes of images (N, 3, H, W) in [0, 1], differentiable: flat patches of all images
    (N g_h g_w, 3 T p p), merged patches side by side, and the grid (1, g_h, g_w) of each, (N, 3)."""
    size, p, m = smart_size(processor, *images.shape[-2:]), processor.patch_size, processor.merge_size
    x = images.float()
    if size != tuple(x.shape[-2:]):
        x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    n, h, w = len(x), size[0] // p, size[1] // p
    x = ((x - mean) / std).view(n, 3, h // m, m, p, w // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(*x.shape[:6], processor.temporal_patch_size, p, p)  # a picture is a still film
    return x.reshape(n * h * w, -1), torch.tensor([[1, h, w]], device=x.device).expand(n, 3)


def square(images: Tensor, side: int) -> Tensor:
    """CLIP's input from whole images (N, 3, H, W) in [0, 1]: padded to a square with CLIP's mean colour, resized
    (bicubic), normalised; differentiable."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    (h, w), x = images.shape[-2:], images.float()
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    long, top, left = max(h, w), max(w - h, 0) // 2, max(h - w, 0) // 2
    canvas = ((mean * 255).int() / 255).expand(len(x), 3, long, long).clone()  # an 8-bit colour, as released
    canvas[..., top : top + h, left : left + w] = x
    if long != side:
        canvas = F.interpolate(canvas, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return (canvas - mean) / std
