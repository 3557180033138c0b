"""ModelScope's text to video (arXiv 2308.06571)."""

from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.video import FrameByFrame


class ModelScopeT2V(FrameByFrame, StableDiffusion):
    """Stable Diffusion with convolutions and attention over time; epsilon prediction, 16 frames of 256 x 256 pixels at
    8 a second. diffusers has no gradient checkpointing for it."""

    pipeline_class = "TextToVideoSDPipeline"

    def __init__(self, *args, num_frames: int = 16, **kwargs):
        super().__init__(*args, num_frames=num_frames, **kwargs)
