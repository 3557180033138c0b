"""Supervised fine-tuning: the denoising loss on good images; the baseline of every preference paper."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm


class SFT(Algorithm):
    """Denoising score matching or flow matching (survey section 2.1): mean ||prediction - target||^2.

    Learns from `image`, or from the winners of a pair set (set `learns_from: win`).

    Args:
        learns_from: batch key of the images.
        timestep_sampling: distribution of t: uniform, or logit_normal or mode for flow matching (arXiv 2403.03206).
    """

    feedback = ("image",)

    def __init__(
        self,
        learns_from: Literal["image", "win"] = "image",
        timestep_sampling: Literal["uniform", "logit_normal", "mode"] = "uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.feedback = (learns_from,)
        self.timestep_sampling = timestep_sampling

    def batch_loss(self, batch: dict) -> Tensor:
        process, x_0 = self.policy.process, self.latents(batch, self.feedback[0])
        t = process.sample_timesteps(len(x_0), self.timestep_sampling, device=x_0.device)
        eps = torch.randn_like(x_0)
        prediction = self.policy.denoise(process.add_noise(x_0, eps, t), t, self.cond(batch))
        return self.policy.error(prediction, process.target(x_0, eps, t)).mean()
