"""What the family shares: clipping, accumulation and memory are the Trainer's."""

import lightning as L
import torch
from parts import Darkness, prompts, trained, trainer

from lit_align.algorithms.reward_gradient.draft import DRaFT
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion


def test_the_trainer_clips_and_accumulates(tmp_path):
    L.seed_everything(0, verbose=False)
    method = DRaFT(policy=StableDiffusion("tiny", LoRA(rank=2)), reward=Darkness(), rollout=Sampler(2, 2.0), K=1, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = [p.detach().clone() for p in trained(method.policy)]
    t = trainer(tmp_path, accumulate_grad_batches=3, gradient_clip_val=1e-7)
    t.fit(method, prompts(2, 3))
    assert t.global_step == 1
    step = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, trained(method.policy))])
    assert 0.5e-7 < step.norm().item() < 1.01e-7  # clip_grad_norm_ adds 1e-6 to the gradient's norm, here about 1e-5
