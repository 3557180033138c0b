"""SFT is the denoising loss."""

import pytest
import torch
import torch.nn.functional as F
from parts import trainer
from preferences import attached, batch, still

from lit_align.algorithms.preference.sft import SFT
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None, generator=torch.Generator())


def test_sft_is_the_denoising_loss(tmp_path):
    sft = attached(SFT(policy=still(StableDiffusion3), timestep_sampling="logit_normal"))
    x = torch.randn(3, *sft.policy.latent_shape)
    data = {"prompt": ["a", "b", "c"], "index": [0, 1, 2], "image_latents": x}
    torch.manual_seed(4)
    loss = sft.batch_loss(data)
    torch.manual_seed(4)
    u = torch.randn(3).sigmoid()
    t, eps = 3 * u / (1 + 2 * u), torch.randn_like(x)
    torch.rand(3)
    cond = sft.policy.condition(data["prompt"])
    t_ = t.view(-1, 1, 1, 1)
    v = sft.policy.denoiser((1 - t_) * x + t_ * eps, cond["text"], cond["pooled"], t * 1000).sample
    assert loss.item() == pytest.approx(F.mse_loss(v, eps - x).item(), rel=1e-5)


def test_sft_on_winners_reads_a_pair_set(tmp_path):
    sft = SFT(policy=StableDiffusion("tiny", LoRA(rank=2)), learns_from="win")
    t = trainer(tmp_path)
    t.fit(sft, loader([{k: batch(sft.policy)[k] for k in ("prompt", "index", "win")}]))
    assert t.global_step == 1
