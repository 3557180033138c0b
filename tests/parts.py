"""What tests of methods share."""

from collections import Counter

import lightning as L
import torch
from torch import nn

from lit_align.diffusion.process import Flow
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.reward import Reward

T = torch.tensor


class Darkness(Reward):
    name, differentiable = "darkness", True

    def forward(self, images, prompts):
        return 1 - images.mean((1, 2, 3))


class Level(Reward):
    """The mean of the sample. It tilts a Gaussian N(m, d^2) in one dimension to N(m + lambda d^2, d^2)."""

    name, differentiable = "level", True

    def forward(self, images, prompts):
        return images.flatten(1).mean(1)


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **(quiet | {"max_epochs": 1} | kwargs))


def prompts(n=2, batches=1, **more):
    batch = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "seed": list(range(n)), **more}
    return torch.utils.data.DataLoader([batch] * batches, batch_size=None)


def rollout(policy, steps=3):
    return Sampler(steps, 2.0, FlowSDE() if isinstance(policy, StableDiffusion3) else DDIM(1.0))


class Analytic(nn.Module):
    """The exact flow of data N(m, d^2), with a parameter added to its prediction: what a policy is to the sampler."""

    def __init__(self, m=1.5, d=0.5, process=None, shape=(1, 2, 2)):
        super().__init__()
        self.process, self.m, self.d, self.latent_shape = process or Flow(), m, d, shape
        self.bias, self.calls, self.device = nn.Parameter(torch.zeros(())), Counter(), torch.device("cpu")

    def condition(self, prompts):
        return {"c": torch.zeros(len(prompts), 1)}

    def denoise(self, x, t, cond, guidance_scale=1.0):
        self.calls["denoise"] += len(x)
        a, s = self.process.coefficients(t, x)
        var = a**2 * self.d**2 + s**2
        eps = s / var * (x - a * self.m)
        x_0 = self.m + a * self.d**2 / var * (x - a * self.m)
        return (eps - x_0 if self.process.prediction == "flow" else eps) + self.bias * (1 + 0.1 * x)

    def decode(self, z):
        self.calls["decode"] += len(z)
        return z
