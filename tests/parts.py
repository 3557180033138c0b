"""What tests of methods share."""

import lightning as L
import torch

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.reward import Reward

T = torch.tensor


class Darkness(Reward):
    name, differentiable = "darkness", True

    def forward(self, images, prompts):
        return 1 - images.mean((1, 2, 3))


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **(quiet | {"max_epochs": 1} | kwargs))


def prompts(n=2, batches=1, **more):
    batch = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), **more}
    return torch.utils.data.DataLoader([batch] * batches, batch_size=None)


def rollout(policy, steps=3):
    return Sampler(steps, 2.0, FlowSDE() if isinstance(policy, StableDiffusion3) else DDIM(1.0))
