"""HunyuanDiT (arXiv 2405.08748)."""

import torch
from torch import Tensor

from lit_align.policies.policy import Policy


class HunyuanDiT(Policy):
    """A transformer with 77 tokens of a bilingual CLIP (a BERT) and 256 of mT5, English or Chinese. It predicts v, and
    a variance that is not read; size conditioning is diffusers', 1024 x 1024 pixels before cropping."""

    pipeline_class = "HunyuanDiTPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")

    @property
    def patch(self) -> int:
        return self.denoiser.config.patch_size

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        encode = lambda i: self.pipe.encode_prompt(
            prompts, device, do_classifier_free_guidance=False, text_encoder_index=i
        )
        (text, _, mask, _), (text_2, _, mask_2, _) = encode(0), encode(1)
        return {"text": text, "mask": mask.bool(), "text_2": text_2, "mask_2": mask_2.bool()}  # (B, L, D), (B, L)

    def predict(self, x_t, t, cond):
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        h, w = x_t.shape[2:]
        factor, width = self.vae_scale_factor, self.denoiser.config.attention_head_dim
        grid = (h // self.patch, w // self.patch)
        crop = get_resize_crop_region_for_grid(grid, 512 // factor // self.patch)
        places = get_2d_rotary_pos_embed(width, crop, grid, device=x_t.device, output_type="pt")
        sizes = x_t.new_tensor([[1024, 1024, h * factor, w * factor, 0, 0]]).repeat(len(x_t), 1)
        style = torch.zeros(len(x_t), dtype=torch.long, device=x_t.device)
        texts = (cond["text"], cond["mask"], cond["text_2"], cond["mask_2"])
        out = self.denoiser(x_t, t.to(x_t.dtype), *texts, sizes, style, places).sample
        return out.chunk(2, dim=1)[0]
