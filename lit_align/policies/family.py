"""What differs between model families."""

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from lit_align.diffusion.process import Grid, Process
from lit_align.policies import codec
from lit_align.policies.adapters import ATTENTION


class Family(nn.Module):
    """What differs between model families, with defaults that suit most; a family overrides the rest.

    Policy sets `pipe` (the diffusers pipeline), `denoiser`, `height` and `width` of an image in pixels, `latent_shape`,
    `process` and `condition`.
    """

    pipeline_class: str  # name in diffusers
    made_from: tuple[str, ...] = ()  # other pipelines from which this one can be built
    denoiser_name: Literal["unet", "transformer"]
    encoder_names: tuple[str, ...]  # text encoders in the pipeline; any may be missing
    left_out: tuple[str, ...] = ()  # parts of the pipeline not to load
    lora_targets: tuple[str, ...] = ATTENTION  # linear layers that LoRA adapts by default
    vae_class = "AutoencoderKL"  # in diffusers
    grid: Grid | None = None  # the pipeline's own sampling grid; None: the scheduler's
    patch = 1  # side of the squares of latents that are one token
    packs = False  # whether `predict` packs a square into channels
    text_first: bool | None = None  # text before image tokens in joint attention; None: not known (see attention.py)
    image_axes = 3  # of one sample before encoding: (3, H, W), or 4 for a video (F, 3, H, W)
    num_frames: int | None = None  # F of a video; None: images
    fps = 0.0  # of a video
    reads: tuple[str, ...] = ()  # columns of the data that the conditioning needs: `source`, the image that is edited

    def load_parts(self, where: str, revision: str | None) -> dict:
        """Parts of the pipeline in the folder or hub repository `where` that diffusers is not to load itself."""
        return {}

    def default_resolution(self) -> int | tuple[int, int]:
        """Side of a square image, or height and width, pixels; 1024 where the denoiser's config says nothing."""
        size = self.denoiser.config.get("sample_size")
        return size * self.vae_scale_factor if size else 1024

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of a side per latent."""
        return self.pipe.vae_scale_factor

    def image_shape(self) -> tuple[int, ...]:
        """(3, H, W) of one sample, (F, 3, H, W) of a video."""
        return (3, self.height, self.width)

    def latent_channels(self) -> int:
        return codec.channels(self.pipe.vae)

    def shape(self) -> tuple[int, ...]:
        """Latents of one sample, never packed: (C, h, w)."""
        factor, channels = self.vae_scale_factor, self.denoiser.config.in_channels
        channels = channels // self.patch**2 if self.packs else channels
        return (channels, self.height // factor, self.width // factor)

    def tokens(self) -> int:
        """Image tokens in the denoiser, by which some schedulers shift their times."""
        return math.prod(self.latent_shape[1:]) // self.patch**2

    def make_process(self, config: dict) -> Process:
        """The noising process, from the scheduler's config."""
        return Process.from_scheduler(config, tokens=self.tokens(), grid=self.grid)

    def statistics(self) -> codec.Statistics:
        """Shift and scale of the VAE's latents z: latents are (z - shift) * scale."""
        return codec.statistics(self.pipe.vae, len(self.latent_shape))

    def vae_encode(self, images: Tensor, mode: bool = False) -> Tensor:
        """Latents z of images in [-1, 1], before they are scaled: a sample of the posterior, or its mode."""
        return codec.encode(self.pipe.vae, images, mode)

    def vae_decode(self, z: Tensor) -> Tensor:
        """Images in [-1, 1] of latents z."""
        return self.pipe.vae.decode(z).sample

    @abstractmethod
    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        """The denoiser's conditioning, by text encoders that lie on `device`: tensors (B, ...). `text` (B, L, D) holds
        token embeddings; `mask` (B, L), where there is one, says which are real.

        A family that `reads` columns gets each as a further argument, a list of B images (3, H, W) in [0, 1]. What
        guidance leads away from then can depend on the row: an entry `null.<name>` replaces <name> there."""

    def unconditional(self) -> dict[str, Tensor]:
        """The conditioning that guidance leads away from, one row: by default the empty prompt. What it leaves out is
        that of the row."""
        return self.condition([""])

    def summary(self, cond: dict[str, Tensor]) -> Tensor:
        """One vector per caption (B, D), float32: the mean of its real tokens' embeddings."""
        text, mask = cond["text"].float(), cond.get("mask")
        if mask is None:
            return text.mean(1)
        mask = mask.float()
        return (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """Characters (start, end) of the prompt that each position of the conditioning's `text` stands for; (0, 0) for
        special tokens and padding. Raises ValueError for a family that puts the prompt into a template."""
        raise ValueError(f"which tokens a word has is not known of {type(self).__name__}: use another family.")

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The process's prediction type at x_t (B, ...), t (B,): packs, scales time and turns signs as the denoiser
        wants them."""

    def guided(self, null: Tensor, cond: Tensor, w: float) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598, in diffusers' scale)."""
        return null + w * (cond - null)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The parts of a denoiser that FSDP gathers one after the other: the blocks of every list directly below it."""
        if self.denoiser_name == "unet":
            return [*model.down_blocks, model.mid_block, *model.up_blocks]
        return [block for part in model.children() if isinstance(part, nn.ModuleList) for block in part]

    def error(self, pred: Tensor, target: Tensor) -> Tensor:
        """Squared error of each sample, mean over its own axes, float32: (B,)."""
        return (pred.float() - target.float()).square().flatten(1).mean(1)
