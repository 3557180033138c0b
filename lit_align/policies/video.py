"""What the families of video models share."""

from torch import Tensor

from lit_align.policies.policy import Policy


class Video(Policy):
    """Base of the video families. Latents are (C, f, h, w), videos (F, 3, H, W) with F frames at `fps` of them a
    second.

    Args:
        num_frames: F of a video; 1 more than a multiple of the VAE's factor where it compresses time.
        fps: frames a second of training videos and of files that are written (default: the model's own).
    """

    image_axes = 4
    temporal = "vae_scale_factor_temporal"  # what the pipeline calls the frames per latent
    spatial = "vae_scale_factor_spatial"

    def __init__(self, *args, num_frames: int, fps: float | None = None, **kwargs):
        self.num_frames = num_frames
        super().__init__(*args, **kwargs)
        self.fps = fps or self.default_fps()
        self.fingerprint += f" {num_frames}"

    def default_fps(self) -> float:
        """Frames a second of the videos that the model was trained on."""
        return 8

    @property
    def vae_scale_factor(self) -> int:
        return getattr(self.pipe, self.spatial)

    def shape(self) -> tuple[int, ...]:
        channels, h, w = super().shape()
        every = getattr(self.pipe, self.temporal)
        if (self.num_frames - 1) % every:
            raise ValueError(f"num_frames: {self.num_frames} is not 1 more than a multiple of {every}.")
        return (channels, 1 + (self.num_frames - 1) // every, h, w)

    def image_shape(self) -> tuple[int, ...]:
        return (self.num_frames, 3, self.height, self.width)

    def vae_encode(self, images: Tensor, mode: bool = False) -> Tensor:
        return super().vae_encode(images.transpose(1, 2), mode)

    def vae_decode(self, z: Tensor) -> Tensor:
        return super().vae_decode(z).transpose(1, 2)


class FrameByFrame(Video):
    """Base of the video families whose VAE is one of images: every frame is encoded and decoded by itself."""

    def vae_encode(self, images: Tensor, mode: bool = False) -> Tensor:
        z = super(Video, self).vae_encode(images.flatten(0, 1), mode)
        return z.unflatten(0, images.shape[:2]).transpose(1, 2)

    def vae_decode(self, z: Tensor) -> Tensor:
        frames = z.transpose(1, 2)
        return super(Video, self).vae_decode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    @property
    def vae_scale_factor(self) -> int:
        return self.pipe.vae_scale_factor

    def shape(self) -> tuple[int, ...]:
        channels, h, w = super(Video, self).shape()
        return (channels, self.num_frames, h, w)
