"""HunyuanVideo (arXiv 2412.03603) and HunyuanVideo-1.5 (arXiv 2511.18870): text to video."""

import torch
from torch import Tensor

from lit_align.policies.adapters import JOINT_ATTENTION, joint_attention
from lit_align.policies.video import Video


class HunyuanVideo(Video):
    """A flow transformer with the tokens of a Llama and CLIP's pooled embedding. It takes its guidance scale as an
    input, which is not classifier-free guidance: set the sampler's guidance_scale to 1.

    Args:
        distilled_guidance: the scale that it is given, in training and in sampling.
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "HunyuanVideoPipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")
    vae_class = "AutoencoderKLHunyuanVideo"
    lora_targets = JOINT_ATTENTION
    grid = "inverse"

    def __init__(
        self,
        *args,
        num_frames: int = 129,
        distilled_guidance: float = 6.0,
        max_sequence_length: int = 256,
        **kwargs,
    ):
        super().__init__(*args, num_frames=num_frames, **kwargs)
        self.distilled_guidance, self.max_sequence_length = distilled_guidance, max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    def default_fps(self) -> float:
        return 24

    def default_resolution(self) -> int | tuple[int, int]:
        return super().default_resolution() if "sample_size" in self.denoiser.config else (720, 1280)

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        length = self.max_sequence_length
        text, pooled, mask = self.pipe.encode_prompt(prompts, device=device, max_sequence_length=length)
        return {"text": text, "mask": mask.bool(), "pooled": pooled}  # (B, L, D), (B, L), (B, D')

    def predict(self, x_t, t, cond):
        total, embedded = self.process.num_train_timesteps, self.denoiser.config.guidance_embeds
        guidance = torch.full_like(t, 1000 * self.distilled_guidance) if embedded else None
        mask = cond["mask"].to(x_t.dtype)
        return self.denoiser(x_t, t * total, cond["text"], mask, cond["pooled"], guidance).sample


class HunyuanVideo15(Video):
    """A flow transformer with the tokens of a Qwen2.5-VL, and of a ByT5 for words in quotes. For text to video its
    inputs for an image are zeros."""

    pipeline_class = "HunyuanVideo15Pipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")
    vae_class = "AutoencoderKLHunyuanVideo15"
    grid = "inverse"

    @property
    def lora_targets(self) -> tuple[str, ...]:
        return joint_attention(self.denoiser.config.num_layers)

    def __init__(self, *args, num_frames: int = 121, **kwargs):
        super().__init__(*args, num_frames=num_frames, **kwargs)

    def default_fps(self) -> float:
        return 24

    def default_resolution(self) -> int | tuple[int, int]:
        if "sample_size" in self.denoiser.config:
            return super().default_resolution()
        wide, high = self.pipe.default_aspect_ratio
        return self.pipe.video_processor.calculate_default_height_width(high, wide, self.pipe.target_size)

    def shape(self) -> tuple[int, ...]:
        taken, given = self.denoiser.config.in_channels, self.latent_channels()
        if taken != 2 * given + 1:
            raise ValueError(f"this denoiser takes {taken} channels, and HunyuanVideo-1.5 {2 * given + 1}.")
        return (given, *super().shape()[1:])

    def vae_encode(self, images, mode=False):  # diffusers' mask of this VAE's attention is of one sample
        return torch.cat([super(HunyuanVideo15, self).vae_encode(one, mode) for one in images.split(1)])

    def vae_decode(self, z):
        return torch.cat([super(HunyuanVideo15, self).vae_decode(one) for one in z.split(1)])

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        names = ("text", "mask", "glyphs", "glyphs_mask")  # (B, L, D), (B, L), (B, L', D'), (B, L')
        cond = dict(zip(names, self.pipe.encode_prompt(prompts, device, batch_size=len(prompts))))
        return cond | {name: cond[name].bool() for name in names if "mask" in name}

    def predict(self, x_t, t, cond):
        nothing = torch.zeros_like(x_t[:, :1]).expand(-1, x_t.shape[1] + 1, *x_t.shape[2:])
        image = x_t.new_zeros(len(x_t), self.pipe.vision_num_semantic_tokens, self.pipe.vision_states_dim)
        mask, glyphs_mask = (cond[name].to(x_t.dtype) for name in ("mask", "glyphs_mask"))
        time = (t * self.process.num_train_timesteps).to(x_t.dtype)  # as in diffusers
        given = torch.cat([x_t, nothing], 1)
        return self.denoiser(
            given,
            time,
            cond["text"],
            mask,
            encoder_hidden_states_2=cond["glyphs"],
            encoder_attention_mask_2=glyphs_mask,
            image_embeds=image,
        ).sample
