"""Trains the VAE of both Shapes pipelines.

`python -m lit_align.shapes.make.autoencoder --out checkpoints/shapes-sd/vae`
"""

import argparse
import random
import time

import torch
import torch.nn.functional as F

from lit_align.shapes.render import render
from lit_align.shapes.scenes import SKILLS, random_caption, random_scene


def autoencoder():
    """A small AutoencoderKL of factor 8: images (B, 3, 64, 64) become latents (B, 8, 8, 8)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 48, 64),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=16,
        sample_size=64,
        mid_block_add_attention=False,
    )


def images(n: int, rng: random.Random) -> torch.Tensor:
    """n random scenes as images (n, 3, 64, 64) in [-1, 1]."""
    return render([random_scene(random_caption(rng.choice(SKILLS), rng), rng) for _ in range(n)]) * 2 - 1


def train(steps: int, batch_size: int, lr: float, kl_weight: float, seed: int):
    """Trains with L1 and L2 reconstruction errors and a small KL term, AdamW and a one-cycle learning rate. Sets
    scaling_factor to 1 / (standard deviation of the latents)."""
    torch.manual_seed(seed)
    rng, vae = random.Random(seed), autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    start = time.time()
    for step in range(steps):
        x = images(batch_size, rng).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        reconstruction = vae.decode(posterior.sample()).sample
        l1 = F.l1_loss(reconstruction, x)
        loss = l1 + F.mse_loss(reconstruction, x) + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  L1 {l1.item():.4f}  {time.time() - start:.0f} s", flush=True)
    with torch.no_grad():
        latents = vae.encode(images(512, rng)).latent_dist.sample()
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    # The KL term leaves the posterior a standard deviation of 0.36. The decoder tolerates it, but in a small denoiser's
    # loss this noise dominates. Lowering the log-variance by 4 makes latents nearly equal to the posterior's mean.
    vae.quant_conv.bias.data[vae.config.latent_channels :] -= 4.0
    return vae.eval()


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.autoencoder", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write the AutoencoderKL to, in float16")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl_weight", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(args))
    out = given.pop("out")
    train(**given).half().save_pretrained(out)


if __name__ == "__main__":
    main()
