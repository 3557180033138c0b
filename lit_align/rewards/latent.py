"""LPO's latent reward model: the diffusion model's own encoder scores noisy latents, without decoding."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import fetch
from lit_align.policies.policy import Policy
from lit_align.rewards.step_reward import StepReward


class LatentReward(StepReward):
    """Zhang et al. 2025, arXiv 2502.01051, section 4.1: logit_scale x cosine of the caption's pooled embedding and the
    features of a UNet's encoder at x_t, both projected. Features: the pooled outputs of every down block before it
    downsamples, and of the middle block, the latter with classifier-free guidance.

    Args:
        backbone: a policy with a UNet, on the same latents as the aligned policy; its decoder is removed.
        guidance_scale: w of the middle block's features.
        projection_dim: of both projections.
        checkpoint: written by `save`: a file, or `<owner>/<name>/<file>` on the hub.
    """

    needs_x0 = False
    artefact = "none is known to us; what `lrm_sd15`, `lrm_sdxl` and `shapes/train_latent_reward` train"
    scale = "logit_scale x cosine, the model's own"
    blind_to = "what the encoder loses; detail, at high noise"

    def __init__(
        self, backbone: Policy, guidance_scale: float = 7.5, projection_dim: int = 768, checkpoint: str | None = None
    ):
        from safetensors.torch import load_file

        super().__init__()
        if backbone.denoiser_name != "unet":
            raise ValueError(f"LatentReward reads a UNet's encoder; {type(backbone).__name__} has none.")
        self.backbone, self.guidance_scale = backbone, guidance_scale
        unet, widths = backbone.denoiser, backbone.denoiser.config.block_out_channels
        unet.up_blocks, unet.conv_norm_out, unet.conv_out = nn.ModuleList(), None, nn.Identity()  # ends at the middle
        self.features: list[Tensor] = []
        for block in unet.down_blocks:
            last = len(block.resnets) - 1
            block.register_forward_hook(lambda _, __, out, last=last: self.features.append(out[1][last]))
        text = backbone.pipe.components.get("text_encoder_2") or backbone.pipe.text_encoder
        self.visual_projection = nn.Linear(sum(widths) + widths[-1], projection_dim, bias=False)
        self.text_projection = nn.Linear(text.config.hidden_size, projection_dim, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=0.02)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        if checkpoint:
            self.load_state_dict({k: v.float() for k, v in load_file(fetch(checkpoint)).items()})

    def save(self, folder: str) -> None:
        """Writes `<folder>/latent_reward.safetensors`, in float16."""
        from safetensors.torch import save_file

        os.makedirs(folder, exist_ok=True)
        state = {k: v.half().contiguous() for k, v in self.state_dict().items()}
        save_file(state, os.path.join(folder, "latent_reward.safetensors"))

    def pooled(self, prompts: list[str], cond: dict[str, Tensor]) -> Tensor:
        """The captions' pooled embeddings (B, D)."""
        if "pooled" in cond:
            return cond["pooled"]
        pipe = self.backbone.pipe
        length = pipe.tokenizer.model_max_length
        ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return pipe.text_encoder(ids.input_ids.to(self.backbone.device)).pooler_output

    def forward(self, policy, x_t, x_0, t, prompts):
        unique = list(dict.fromkeys(prompts))
        rows = [unique.index(p) for p in prompts]
        cond = self.backbone.condition(unique)
        text = self.text_projection(self.pooled(unique, cond).float())[rows]
        self.features.clear()
        cond = {k: v[rows] for k, v in cond.items()}
        middle = self.backbone.denoise(x_t, t.clamp(min=0), cond, self.guidance_scale)
        stages = [*(f[-len(x_t) :].float() for f in self.features), middle]  # conditional half only
        image = self.visual_projection(torch.cat([f.mean((2, 3)) for f in stages], 1))
        return self.logit_scale.exp() * F.cosine_similarity(image, text)
