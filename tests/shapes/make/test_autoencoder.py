"""Training of the VAE."""

import pytest
import torch
from diffusers import AutoencoderKL

from lit_align.shapes.make import autoencoder


def test_the_command_trains_and_scales_latents_to_unit_variance(tmp_path, capsys):
    autoencoder.main(["--out", str(tmp_path), "--steps", "3", "--batch_size", "2"])
    vae, shipped = AutoencoderKL.from_pretrained(tmp_path), autoencoder.autoencoder()
    assert vae.config.latent_channels == 8 and vae.state_dict().keys() == shipped.state_dict().keys()
    x = autoencoder.images(64, autoencoder.random.Random(5))
    assert x.shape == (64, 3, 64, 64) and x.min() >= -1 and x.max() <= 1
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
    before = posterior.logvar + 4  # lowered by 4 after training; the scale was measured before
    std = (posterior.mean + (before / 2).exp() * torch.randn_like(posterior.mean)).std()
    assert vae.config.scaling_factor * std.item() == pytest.approx(1, abs=0.1)
    assert capsys.readouterr().out.count("L1") == 2
