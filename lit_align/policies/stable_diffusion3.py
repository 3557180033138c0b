"""Stable Diffusion 3 and 3.5."""

import torch
from torch import Tensor

from lit_align.policies.attention import token_spans
from lit_align.policies.policy import Policy


class StableDiffusion3(Policy):
    """An MM-DiT with two CLIP text encoders and T5, trained by flow matching (arXiv 2403.03206).

    A pipeline saved without its T5 loads without it; zeros stand in its place, as in diffusers.

    Args:
        max_sequence_length: tokens of the T5 text.
        drop_t5: leave the T5 encoder out, which saves most of the text encoders' memory.
    """

    pipeline_class = "StableDiffusion3Pipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    text_first = False

    def __init__(self, *args, max_sequence_length: int = 256, drop_t5: bool = False, **kwargs):
        if drop_t5:
            self.left_out = ("text_encoder_3", "tokenizer_3")
        super().__init__(*args, **kwargs)
        self.max_sequence_length = max_sequence_length
        self.fingerprint += f" {max_sequence_length} {drop_t5}"

    @property
    def patch(self) -> int:
        return self.denoiser.config.patch_size

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        return {"text": text, "pooled": pooled}  # (B, L, D), (B, D')

    def spans(self, prompt):
        clip, t5 = self.pipe.tokenizer, self.pipe.tokenizer_3
        first = token_spans(clip, prompt, self.pipe.tokenizer_max_length)
        if self.pipe.text_encoder_3 is None:
            return first + [(0, 0)] * self.max_sequence_length
        return first + token_spans(t5, prompt, self.max_sequence_length)

    def predict(self, x_t, t, cond):
        t = t * self.process.num_train_timesteps
        return self.denoiser(x_t, cond["text"], cond["pooled"], t).sample
