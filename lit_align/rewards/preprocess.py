"""What image processors do, on tensors: differentiable in the images, which are (B, 3, H, W) in [0, 1]."""

import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Images of another size (height, width), by PIL's antialiased filter `mode`. Bicubic overshoots [0, 1] at edges,
    where PIL clips."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode=mode, align_corners=False, antialias=True)


def crop(images: Tensor, side: int) -> Tensor:
    """The central square after the shorter side became `side` (bicubic): CLIP's image processor. (torchvision's square
    lies one pixel further along where the rest is odd.)"""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    images = resize(images, (int(side * height / shorter), int(side * width / shorter))).clamp(0, 1)
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def stretch(images: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """Images of side x side, each axis resized for itself: the image processor of ViT."""
    return resize(images, (side, side), mode).clamp(0, 1)


def letterbox(images: Tensor, side: int) -> Tensor:
    """The whole image on a black square of side x side, after the longer side became `side` (bicubic, not clipped):
    HPS v2's image processor. It leaves out the bars where the longer side is `side` already, and fails."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    return pad_to_square(resize(images, (round(side * height / longer), round(side * width / longer))))


def pad_to_square(images: Tensor, colour: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """The image in the middle of the smallest square that holds it, whose bars have a colour in [0, 1]."""
    height, width = images.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    colour = images.new_tensor(colour).view(3, 1, 1)
    return F.pad(images - colour, (left, side - width - left, top, side - height - top)) + colour


def normalise(images: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> Tensor:
    """(images - mean) / std of each colour."""
    return (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)
