"""FLUX.1: dev and schnell."""

import torch
from torch import Tensor

from lit_align.policies.adapters import JOINT_ATTENTION
from lit_align.policies.attention import token_spans
from lit_align.policies.packing import grid_ids, pack, unpack
from lit_align.policies.policy import Policy


class Flux(Policy):
    """A flow transformer on 2 x 2 squares of latents, with T5 tokens and CLIP's pooled embedding.

    dev takes its guidance scale as an input, which is not classifier-free guidance: set the sampler's guidance_scale
    to 1. schnell has no such input; it is sampled in 4 steps.

    Args:
        distilled_guidance: the scale that dev is given, in training and in sampling.
        max_sequence_length: tokens of the T5 text (schnell: 256).
    """

    pipeline_class = "FluxPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")
    lora_targets = JOINT_ATTENTION
    grid = "inverse"
    patch, packs = 2, True
    text_first = True

    def __init__(self, *args, distilled_guidance: float = 3.5, max_sequence_length: int = 512, **kwargs):
        super().__init__(*args, **kwargs)
        self.distilled_guidance, self.max_sequence_length = distilled_guidance, max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        text, pooled, _ = self.pipe.encode_prompt(prompts, device=device, max_sequence_length=length)
        return {"text": text, "pooled": pooled}  # (B, L, D), (B, D')

    def spans(self, prompt):
        return token_spans(self.pipe.tokenizer_2, prompt, self.max_sequence_length)

    def predict(self, x_t, t, cond):
        h, w = x_t.shape[2:]
        return unpack(self.call(pack(x_t), grid_ids(h // 2, w // 2, 3, x_t.device), t, cond), h, w)

    def call(self, tokens: Tensor, places: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The denoiser's output (B, N, D) for image tokens (B, N, D) at places (N, 3)."""
        text_places = torch.zeros(cond["text"].shape[1], 3, device=tokens.device)
        embedded = self.denoiser.config.guidance_embeds
        guidance = torch.full_like(t, self.distilled_guidance, dtype=torch.float32) if embedded else None
        return self.denoiser(tokens, cond["text"], cond["pooled"], t, places, text_places, guidance).sample
