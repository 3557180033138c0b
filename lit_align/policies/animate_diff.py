"""AnimateDiff: a motion module in Stable Diffusion 1.5 (arXiv 2307.04725)."""

from lit_align.paths import find
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.video import FrameByFrame


class AnimateDiff(FrameByFrame, StableDiffusion):
    """Stable Diffusion 1.x whose blocks attend over time; epsilon prediction, 16 frames at 8 a second. It was trained
    with linear betas: with the pipeline of another base model set scheduler: {beta_schedule: linear,
    timestep_spacing: linspace, steps_offset: 1}. LoRA with target_modules of motion_modules alone trains the motion.

    Args:
        motion_adapter: hub id or folder of a MotionAdapter, where `pretrained` is a pipeline of Stable Diffusion.
    """

    pipeline_class = "AnimateDiffPipeline"
    made_from = ("StableDiffusionPipeline",)

    def __init__(self, *args, num_frames: int = 16, motion_adapter: str | None = None, **kwargs):
        self.motion_adapter = motion_adapter
        super().__init__(*args, num_frames=num_frames, **kwargs)
        self.fingerprint += f" {motion_adapter}" if motion_adapter else ""

    def load_parts(self, where, revision):
        from diffusers import MotionAdapter

        if self.motion_adapter is None:
            return {}
        return {"motion_adapter": MotionAdapter.from_pretrained(find(self.motion_adapter), dtype=self.dtype)}

    def predict(self, x_t, t, cond):
        text = cond["text"].repeat_interleave(self.num_frames, 0)
        return self.denoiser(x_t, t, text).sample
