"""Every flow family through one method of each kind: two optimizer steps change the adapter and nothing else."""

import pytest
import torch
from parts import Level, prompts, trainer

from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.reward_gradient.draft import DRaFT
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import FlowSDE
from lit_align.policies.adapters import LoRA
from lit_align.policies.flux import Flux
from lit_align.policies.flux2 import Flux2, Flux2Klein
from lit_align.policies.qwen_image import QwenImage
from lit_align.policies.wan import Wan
from lit_align.policies.z_image import ZImage

SMALL = {  # of text and images
    Flux: {"max_sequence_length": 16},
    Flux2: {"max_sequence_length": 16},
    Flux2Klein: {"max_sequence_length": 16},
    QwenImage: {"resolution": 32},
    Wan: {"max_sequence_length": 16, "frames": 5},
    ZImage: {"max_sequence_length": 64},
}
METHODS = {
    DiffusionDPO: lambda: {"beta": 500.0},
    FlowGRPO: lambda: {"reward": Level(), "rollout": Sampler(2, 1.0, FlowSDE()), "samples_per_prompt": 2, "minibatch": 4, "clip_range": 0.1},
    DiffusionNFT: lambda: {"reward": Level(), "rollout": Sampler(2, 1.0), "samples_per_prompt": 2},
    DRaFT: lambda: {"reward": Level(), "rollout": Sampler(2, 3.0), "K": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", SMALL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("method", METHODS, ids=lambda c: c.__name__)
def test_two_steps_move_the_adapter(method, family, tmp_path):
    torch.manual_seed(0)
    policy = family("tiny", LoRA(rank=2), **SMALL[family])
    images = torch.rand(2, *((5,) if family is Wan else ()), 3, policy.height, policy.width)
    batch = {"win": images, "lose": 1 - images} if method is DiffusionDPO else {}
    module = method(policy=policy, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), **METHODS[method]())
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer(tmp_path).fit(module, prompts(2, batches=2, **batch))
    moved = {name for name, p in policy.named_parameters() if name in before and not torch.equal(before[name], p)}
    trained = {name for name, p in policy.named_parameters() if name in before and p.requires_grad}
    assert moved and moved <= trained and all(p.isfinite().all() for p in policy.parameters())
