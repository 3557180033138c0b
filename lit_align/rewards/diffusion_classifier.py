"""The diffusion model as a judge: how much better it denoises an image when it is told the prompt."""

import torch
from torch import Tensor

from lit_align.policies.policy import Policy
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm import in_chunks


class DiffusionClassifier(Reward):
    """E_{t, eps}[error without the prompt - error with it], of the denoising error at times t with noise eps (Li et al.
    2023, arXiv 2303.16203, eq. 6, as a margin and not a posterior). Without the prompt: with the empty one, or, where
    the data has a column `negatives` (for each prompt a list of others), the mean error over those. All images and
    all prompts see the same times and noises, so that most of the variance cancels.

    With the policy's own base model it is a policy that judges itself (self-alignment).

    Args:
        backbone: the judge; give it adapter Frozen.
        draws: of time and noise; 30 to 100 tell fine differences.
        chunk: noisy images in one forward pass.
        seed: of times and noises.
    """

    name, differentiable = "diffusion_classifier", False
    artefact, licence = "any policy's weights", "the policy's own"
    scale = "a difference of mean squared errors; about 0 to 0.01, the sign tells"
    blind_to = "quality: an ugly picture of the prompt scores well; text that its encoder cuts off"

    def __init__(self, backbone: Policy, draws: int = 32, chunk: int = 16, seed: int = 0):
        super().__init__()
        self.backbone, self.draws, self.chunk, self.seed = backbone, draws, chunk, seed

    def errors(self, latents: Tensor, prompts: list[str]) -> Tensor:
        """Mean denoising error (N,) of latents (N, ...) under their prompts."""
        b, n = self.backbone, len(latents)
        g = torch.Generator().manual_seed(self.seed)
        t = b.process.sample_timesteps(self.draws, generator=g).to(latents.device)
        eps = torch.randn(self.draws, *latents.shape[1:], generator=g).to(latents)
        unique = list(dict.fromkeys(prompts))
        cond, rows = b.condition(unique), torch.tensor([unique.index(p) for p in prompts]).repeat(self.draws)
        image, draw = torch.arange(n).repeat(self.draws), torch.arange(self.draws).repeat_interleave(n)

        def error(image: Tensor, draw: Tensor, rows: Tensor) -> Tensor:
            x_0, noise, time = latents[image], eps[draw], t[draw]
            pred = b.denoise(b.process.add_noise(x_0, noise, time), time, {k: v[rows] for k, v in cond.items()})
            return b.error(pred, b.process.target(x_0, noise, time))

        return in_chunks(error, self.chunk, image, draw, rows).view(self.draws, n).mean(0)

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: list[str], negatives: list[list[str]] | None = None) -> Tensor:
        latents = self.backbone.encode(images)
        against = negatives or [[""]] * len(prompts)
        if not all(against):
            raise ValueError(
                f"{prompts[against.index([])]!r} has no negatives: leave the column out, or give each one."
            )
        rows = torch.tensor([i for i, others in enumerate(against) for _ in others], device=latents.device)
        others = self.errors(latents[rows], [p for others in against for p in others])
        total = torch.zeros(len(latents), device=latents.device).index_add(0, rows, others)
        return total / rows.bincount() - self.errors(latents, prompts)
