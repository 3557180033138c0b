"""PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692)."""

import torch
from torch import Tensor

from lit_align.policies.policy import Policy


class PixArtSigma(Policy):
    """A transformer with T5 tokens, which predicts eps and a variance that is not read. Prompts are lower-cased, and,
    as in diffusers, cleaned where beautifulsoup4 and ftfy are installed.

    Args:
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "PixArtSigmaPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)

    def __init__(self, *args, max_sequence_length: int = 300, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_sequence_length = max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    @property
    def patch(self) -> int:
        return self.denoiser.config.patch_size

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        from diffusers.utils import is_bs4_available, is_ftfy_available

        options = {"max_sequence_length": self.max_sequence_length, "device": device}
        options["clean_caption"] = is_bs4_available() and is_ftfy_available()
        text, mask, _, _ = self.pipe.encode_prompt(prompts, False, **options)
        return {"text": text, "mask": mask.bool()}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        height, width = (side * self.vae_scale_factor for side in x_t.shape[2:])
        sizes = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:  # PixArt-alpha for 1024 pixels
            rows = lambda *values: x_t.new_tensor([values]).expand(len(x_t), -1)
            sizes = {"resolution": rows(height, width), "aspect_ratio": rows(height / width)}
        out = self.denoiser(x_t, cond["text"], t, sizes, encoder_attention_mask=cond["mask"]).sample
        return out.chunk(2, dim=1)[0]


class PixArtAlpha(PixArtSigma):
    """PixArt-alpha reads 120 tokens, and for 1024 pixels is told an image's size and shape.

    Args:
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "PixArtAlphaPipeline"

    def __init__(self, *args, max_sequence_length: int = 120, **kwargs):
        super().__init__(*args, max_sequence_length=max_sequence_length, **kwargs)
