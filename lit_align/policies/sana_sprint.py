"""Sana-Sprint (arXiv 2503.09641)."""

import torch
from torch import Tensor

from lit_align.policies.sana import Sana


class SanaSprint(Sana):
    """Sana distilled to 1 to 4 steps, with the guidance scale as an input: set the sampler's guidance_scale to 1 and
    its transition to CPS with a: 1, the published step.

    Its times are angles; here they are the straight path's t = sin / (sin + cos), at which the network predicts the
    path's velocity.

    Args:
        distilled_guidance: the scale that the network is given, in training and in sampling.
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "SanaSprintPipeline"

    def __init__(self, *args, distilled_guidance: float = 4.5, max_sequence_length: int = 300, **kwargs):
        super().__init__(*args, max_sequence_length=max_sequence_length, **kwargs)
        self.distilled_guidance = distilled_guidance

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        options = {"max_sequence_length": self.max_sequence_length, "complex_human_instruction": self.instruction}
        text, mask = self.pipe.encode_prompt(prompts, device=device, **options)
        return {"text": text, "mask": mask.bool()}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        guidance = x_t.new_full((len(x_t),), self.distilled_guidance * self.denoiser.config.guidance_embeds_scale)
        return self.denoiser(x_t, cond["text"], t, guidance, encoder_attention_mask=cond["mask"]).sample
