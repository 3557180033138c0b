"""Diffusion-KTO: a utility of single images that are labelled good or bad."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm
from lit_align.algorithms.parts.denoising_errors import denoised

UTILITIES = {
    "kahneman_tversky": torch.sigmoid,
    "loss_averse": F.logsigmoid,
    "risk_seeking": lambda m: -F.logsigmoid(-m),
}


class DiffusionKTO(Algorithm):
    """Li et al. 2024, arXiv 2404.04465, eq. 13: lambda (1 - U(y beta (h - z))), y = +1 for good images and -1 for bad
    ones.

    h = reference error - error. The reference point z is the mean h of the batch over all ranks, at least 0, without
    gradient. Each image has its own timestep and noise.

    Logs `train/h/good`, `train/h/bad` and `train/z`.

    Args:
        beta: coefficient of h - z.
        utility: kahneman_tversky (sigmoid), loss_averse (log-sigmoid) or risk_seeking (its mirror).
        weight_good, weight_bad: lambda of good and of bad images.
        timestep_sampling: distribution of t: uniform, logit_normal or mode.
    """

    feedback = ("image", "label")
    uses_reference = True

    def __init__(
        self,
        beta: float = 5000.0,
        utility: Literal["kahneman_tversky", "loss_averse", "risk_seeking"] = "kahneman_tversky",
        weight_good: float = 1.0,
        weight_bad: float = 1.0,
        timestep_sampling: Literal["uniform", "logit_normal", "mode"] = "uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.beta, self.utility, self.timestep_sampling = beta, utility, timestep_sampling
        self.weight_good, self.weight_bad = weight_good, weight_bad

    def batch_loss(self, batch: dict) -> Tensor:
        x_0, good = self.latents(batch, "image"), batch["label"].to(self.device) > 0.5
        t = self.policy.process.sample_timesteps(len(x_0), self.timestep_sampling, device=x_0.device)
        d = denoised(self.policy, x_0, t, torch.randn_like(x_0), self.cond(batch))
        h = d.ref_error - d.error
        z = self.all_gather(h.detach()).mean().clamp(min=0)
        for name, rows in (("good", good), ("bad", ~good)):
            if rows.any():
                self.log_mean(f"train/h/{name}", h[rows].detach().mean(), int(rows.sum()))
        self.log_mean("train/z", z, 1)
        return self.loss(h, good, z).mean()

    def loss(self, h: Tensor, good: Tensor, z: Tensor) -> Tensor:
        """(B,) from h (B,), labels `good` (B,) bool, and z ()."""
        y, weight = torch.where(good, 1.0, -1.0), torch.where(good, self.weight_good, self.weight_bad)
        return weight * (1 - UTILITIES[self.utility](y * self.beta * (h - z)))
