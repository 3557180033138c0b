"""Chroma: FLUX.1-schnell made smaller, without guidance as an input."""

import torch
from torch import Tensor

from lit_align.policies.adapters import JOINT_ATTENTION
from lit_align.policies.packing import grid_ids, pack, unpack
from lit_align.policies.policy import Policy


class Chroma(Policy):
    """A flow transformer on 2 x 2 squares of latents, with T5 tokens and one token of padding. The other padding is
    masked as diffusers does it: by adding 0, and 1 to the logits of the rest, so that it is not wholly unseen.

    Args:
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "ChromaPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    lora_targets = JOINT_ATTENTION
    grid = "inverse"
    patch, packs = 2, True

    def __init__(self, *args, max_sequence_length: int = 512, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_sequence_length = max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        options = {"max_sequence_length": self.max_sequence_length, "do_classifier_free_guidance": False}
        text, _, mask, *_ = self.pipe.encode_prompt(prompts, device=device, **options)
        return {"text": text, "mask": mask.bool()}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        h, w = x_t.shape[2:]
        tokens, places = pack(x_t), grid_ids(h // 2, w // 2, 3, x_t.device)
        text_places = torch.zeros(cond["text"].shape[1], 3, device=x_t.device)
        mask = torch.cat([cond["mask"].to(x_t.dtype), x_t.new_ones(tokens.shape[:2])], 1)
        return unpack(self.denoiser(tokens, cond["text"], t, places, text_places, mask).sample, h, w)
