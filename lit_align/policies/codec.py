"""Between images and latents: a VAE, and the statistics by which its latents are scaled."""

import torch
from torch import Tensor, nn

Statistics = tuple[float | Tensor, float | Tensor]  # shift and scale: latents are (z - shift) * scale


def statistics(vae: nn.Module, axes: int) -> Statistics:
    """Shift and scale of a VAE's latents, numbers or tensors (C, 1, ...) for samples of `axes` axes: per channel where
    it has latents_mean and latents_std as buffers or in its config, else shift_factor and scaling_factor."""
    known = {**vae.config, **dict(vae.named_buffers())}
    shift, scale = known.get("shift_factor") or 0, known.get("scaling_factor") or 1.0
    if known.get("latents_mean") is None or known.get("latents_std") is None:
        return shift, scale
    per_channel = lambda name: torch.as_tensor(known[name]).float().view(-1, *[1] * (axes - 1))
    return per_channel("latents_mean"), scale / per_channel("latents_std")


def channels(vae: nn.Module) -> int:
    """Channels of a VAE's latents."""
    return vae.config.get("latent_channels") or vae.config["z_dim"]


def encoder_parts(vae: nn.Module) -> list[nn.Module]:
    """The parts that encode."""
    return [part for name, part in vae.named_children() if name not in ("decoder", "post_quant_conv")]


def decoder_parts(vae: nn.Module) -> list[nn.Module]:
    """The parts that decode."""
    return [part for name, part in vae.named_children() if name not in ("encoder", "quant_conv")]


def encode(vae: nn.Module, images: Tensor, mode: bool = False) -> Tensor:
    """Latents z of images in [-1, 1], as the VAE gives them: a sample of the posterior, where it has one, or its
    mode."""
    out = vae.encode(images)
    if "latent_dist" not in out:
        return out.latent
    return out.latent_dist.mode() if mode else out.latent_dist.sample()


def normalize(z: Tensor, statistics: Statistics) -> Tensor:
    """(z - shift) * scale, float32."""
    shift, scale = (v.to(z.device) if isinstance(v, Tensor) else v for v in statistics)
    return (z.float() - shift) * scale


def denormalize(latents: Tensor, statistics: Statistics) -> Tensor:
    """latents / scale + shift."""
    shift, scale = (v.to(latents.device) if isinstance(v, Tensor) else v for v in statistics)
    return latents / scale + shift
