"""FLUX.2: dev and klein."""

import torch
from torch import Tensor

from lit_align.diffusion.process import Process
from lit_align.policies.adapters import JOINT_ATTENTION
from lit_align.policies.packing import grid_ids
from lit_align.policies.policy import Policy


def empirical_mu(tokens: int, steps: int) -> float:
    """The time shift's exponent: affine in the tokens at 10 and at 200 steps, affine in the steps between them; above
    4300 tokens that of 200 steps (github.com/black-forest-labs/flux2)."""
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    return at_200 if tokens > 4300 else at_200 + (at_200 - at_10) / 190 * (steps - 200)


class Flux2(Policy):
    """A flow transformer with the tokens of a Mistral, on the latents of 2 x 2 squares, normalized by channel.

    dev takes its guidance scale as an input, which is not classifier-free guidance: set the sampler's guidance_scale
    to 1.

    Args:
        distilled_guidance: the scale that dev is given, in training and in sampling.
        max_sequence_length: tokens of the text.
    """

    pipeline_class = "Flux2Pipeline"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder",)
    vae_class = "AutoencoderKLFlux2"
    grid = "inverse"
    text_first = True

    def __init__(self, *args, distilled_guidance: float = 4.0, max_sequence_length: int = 512, **kwargs):
        super().__init__(*args, **kwargs)
        self.distilled_guidance, self.max_sequence_length = distilled_guidance, max_sequence_length
        self.fingerprint += f" {max_sequence_length}"

    @property
    def lora_targets(self) -> tuple[str, ...]:  # in the double blocks, attn.to_out is a list of layers
        single = (f"single_transformer_blocks.{i}.attn.to_out" for i in range(self.denoiser.config.num_single_layers))
        return (*JOINT_ATTENTION, "to_qkv_mlp_proj", *single)

    @property
    def vae_scale_factor(self) -> int:
        return 2 * self.pipe.vae_scale_factor

    def latent_channels(self) -> int:
        return 4 * super().latent_channels()

    def statistics(self):
        norm = self.pipe.vae.bn
        std = (norm.running_var.float() + self.pipe.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.float().view(-1, 1, 1), 1 / std.view(-1, 1, 1)

    def make_process(self, config: dict) -> Process:
        return Process.from_scheduler(config, self.tokens(), self.grid, empirical_mu)

    def vae_encode(self, images, mode=False):
        return torch.pixel_unshuffle(super().vae_encode(images, mode), 2)

    def vae_decode(self, z):
        return super().vae_decode(torch.pixel_shuffle(z, 2))

    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        text, _ = self.pipe.encode_prompt(prompts, device, max_sequence_length=self.max_sequence_length)
        return {"text": text}  # (B, L, D)

    def predict(self, x_t, t, cond):
        places = grid_ids(*x_t.shape[2:], 4, x_t.device)
        length = cond["text"].shape[1]
        text_places = torch.zeros(length, 4, device=x_t.device)
        text_places[:, 3] = torch.arange(length, device=x_t.device)
        embedded = self.denoiser.config.guidance_embeds
        guidance = torch.full_like(t, self.distilled_guidance, dtype=torch.float32) if embedded else None
        tokens = x_t.flatten(2).transpose(1, 2)
        out = self.denoiser(tokens, cond["text"], t, places, text_places, guidance).sample
        return out.transpose(1, 2).unflatten(2, x_t.shape[2:])


class Flux2Klein(Flux2):
    """FLUX.2 in small, with the tokens of a Qwen3; without guidance as an input. The base models take classifier-free
    guidance (4, in 50 steps), the distilled ones none (guidance_scale 1, in 4 steps)."""

    pipeline_class = "Flux2KleinPipeline"
