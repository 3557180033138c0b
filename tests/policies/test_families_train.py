"""Every flow family through one method of each kind: two optimizer steps change the adapter and nothing else."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import image_families
import pytest
import torch
from parts import Level, prompts, trainer
from sharded_families import SMALL, columns
from video_families import DIFFUSION as DIFFUSION_VIDEOS

from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.flow_dpo import FlowDPO
from lit_align.algorithms.reward_gradient.draft import DRaFT
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import LoRA
from lit_align.policies.hunyuan_video import HunyuanVideo15
from lit_align.policies.tiny_videos import shorten
from lit_align.studies import models

DIFFUSION = image_families.DIFFUSION | DIFFUSION_VIDEOS
ROOT = Path(__file__).parents[2]
METHODS = {
    DiffusionDPO: lambda: {"beta": 500.0},
    FlowDPO: lambda: {"beta": 250.0},
    FlowGRPO: lambda: {"reward": Level(), "rollout": Sampler(2, 1.0, FlowSDE()), "samples_per_prompt": 2, "minibatch": 4, "clip_range": 0.1},
    DDPO: lambda: {"reward": Level(), "rollout": Sampler(2, 1.0, DDIM(1.0)), "minibatch": 4, "clip_range": 0.1},
    DiffusionNFT: lambda: {"reward": Level(), "rollout": Sampler(2, 1.0), "samples_per_prompt": 2},
    DRaFT: lambda: {"reward": Level(), "rollout": Sampler(2, 3.0), "K": 1},
}  # fmt: skip


NAMED = {True: models.METHODS[False], False: models.METHODS[True]}  # by whether the family is in DIFFUSION


def slow_but_few(*args):
    """Of three families in the default suite, of the others among the slow tests."""
    quick = args[-1].__name__ in ("StableDiffusion", "Flux", "Wan")
    return pytest.param(*args, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize("method,family", [slow_but_few(m, f) for m in METHODS for f in SMALL if m.__name__ in NAMED[f in DIFFUSION]], ids=lambda c: c.__name__)
def test_two_steps_move_the_adapter(method, family, tmp_path):
    torch.manual_seed(0)
    policy = family("tiny", LoRA(rank=2), **SMALL[family])
    assert (policy.process.prediction == "flow") == (family not in DIFFUSION)
    images = torch.rand(2, *policy.image_shape())
    batch = {"win": images, "lose": 1 - images} if method in (DiffusionDPO, FlowDPO) else {}
    batch |= {"columns": columns(policy)}
    module = method(policy=policy, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), **METHODS[method]())
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer(tmp_path).fit(module, prompts(2, batches=2, **batch))
    moved = {name for name, p in policy.named_parameters() if name in before and not torch.equal(before[name], p)}
    trained = {name for name, p in policy.named_parameters() if name in before and p.requires_grad}
    assert moved and moved <= trained and all(p.isfinite().all() for p in policy.parameters())


def test_the_methods_are_those_of_the_page():
    assert {m.__name__ for m in METHODS} == {*models.METHODS[True], *models.METHODS[False]}


@pytest.mark.parametrize("family", [slow_but_few(f) for f in SMALL], ids=lambda c: c.__name__)
def test_full_training_saves_a_pipeline(family, tmp_path):
    torch.manual_seed(0)
    policy = family("tiny", **SMALL[family])
    images = torch.rand(2, *policy.image_shape())
    module = DiffusionDPO(policy=policy, beta=500.0, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    trainer(tmp_path).fit(module, prompts(2, batches=2, win=images, lose=1 - images, columns=columns(policy)))
    x, t = torch.randn(1, *policy.latent_shape), torch.tensor([500 if family in DIFFUSION else 0.5])
    draw = lambda p: p.denoise(x, t, p.condition(["a"], columns(policy, 1))).detach()
    again = family(str(tmp_path / "policy"), **SMALL[family])
    if family is HunyuanVideo15:
        shorten(again.pipe)
    torch.testing.assert_close(draw(again), draw(policy), atol=1e-5, rtol=1e-4)
    with policy.reference():
        assert (draw(policy) - draw(again)).abs().max() > 1e-4


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict:
    """What two ranks of tests/sharded_families.py saw."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "sharded_families", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=env | {"RANK": r, "LOCAL_RANK": r}, **pipes) for r in "01"]
    try:
        outputs = [p.communicate(timeout=900)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert all(p.returncode == 0 for p in processes), outputs[0][-3000:]
    return torch.load(folder / "seen.pt")


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL, ids=lambda c: c.__name__)
def test_two_fsdp_ranks_take_the_step_of_one_process(sharded, family):
    seen = sharded[family.__name__]
    assert seen["prediction"] < 1e-5 and seen["weights"] < 1e-4 < 1e-2 < seen["moved"]
