"""Z-Image: base and Turbo."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_align.policies.policy import Policy


class ZImage(Policy):
    """A flow transformer on image and text tokens in one stream, with a Qwen3's tokens; texts differ in length. The
    network counts time from noise to data and predicts x_0 - eps.

    The sampler's guidance_scale is diffusers' plus 1: Turbo is sampled at 1, base at 6.

    Args:
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "ZImagePipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    grid = "inverse"
    patch = 2

    def __init__(self, *args, max_sequence_length: int = 512, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_sequence_length = max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        texts, _ = self.pipe.encode_prompt(prompts, device, False, max_sequence_length=length)
        masks = [torch.ones(len(text), dtype=torch.bool, device=text.device) for text in texts]
        return {"text": pad_sequence(texts, True), "mask": pad_sequence(masks, True)}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        texts = [text[mask] for text, mask in zip(cond["text"], cond["mask"], strict=True)]
        images = list(x_t.unsqueeze(2).unbind())  # (C, 1, h, w) each
        out = self.denoiser(images, 1 - t, texts, return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
