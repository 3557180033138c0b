"""What tests of image rewards share: 8-bit pictures, and a check of gradients."""

import torch
from PIL import Image


def picture(n=2, h=40, w=24, seed=0):
    """Smooth 8-bit pictures (N, 3, h, w)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.rand(n, 3, 6, 5, generator=g), (h, w), mode="bilinear")
    return (x * 255).round() / 255


def pil(image):
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def check_gradient(score, images, step, rtol=0.05):
    """The gradient of a scalar score of images, against a central difference along its signs."""
    images = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(score(images), images)
    move = step * grad.sign()
    with torch.no_grad():
        slope = (score(images + move) - score(images - move)) / 2
    torch.testing.assert_close(slope, (grad * move).sum(), rtol=rtol, atol=0)
