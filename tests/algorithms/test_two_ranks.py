"""Two gloo processes on the CPU: methods that draw their own samples use all ranks' rewards, and stay in step."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_align.algorithms.parts.advantages import Group, LeaveOneOut, PerPrompt

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import lightning as L, torch
from parts import Darkness
from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.algorithms.parts.advantages import Group, LeaveOneOut, PerPrompt
from lit_align.algorithms.policy_gradient.branch_grpo import BranchGRPO
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR
from lit_align.algorithms.reward_gradient.alignprop import AlignProp
from lit_align.algorithms.reward_gradient.elegant import ELEGANT
from lit_align.algorithms.reward_gradient.lasro import LaSRO
from lit_align.algorithms.reward_gradient.refl import ReFL
from lit_align.algorithms.reward_gradient.seiko import SEIKO
from lit_align.algorithms.reward_weighted.raft import RAFT
from lit_align.rewards.latent import LatentReward
from lit_align.rewards.multi_reward import WeightedSum
from lightning.pytorch.strategies import ModelParallelStrategy
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

rank, out, fsdp = int(os.environ["RANK"]), {out!r}, {strategy!r} == "fsdp"
noisy = dict(rollout=Sampler(3, 2.0, DDIM(1.0)), samples_per_prompt=2, minibatch=4)
METHODS = dict(
    ddpo=lambda: DDPO(policy=StableDiffusion("tiny", LoRA(rank=2)), advantage=PerPrompt(4, 3), updates=2, **noisy, **rest()),
    rloo=lambda: DDPO(policy=StableDiffusion("tiny", LoRA(rank=2)), advantage=LeaveOneOut(), **noisy, **rest()),
    tdpo_r=lambda: TDPOR(policy=StableDiffusion("tiny", LoRA(rank=2)), advantage=Group(), reset_every=1, **noisy, **rest()),
    branch_grpo=lambda: BranchGRPO(policy=StableDiffusion3("tiny", LoRA(rank=2)), advantage=Group(), splits=(0, 1), minibatch=4,
                                   rollout=Sampler(3, 2.0, FlowSDE()), **rest()),
    nft=lambda: DiffusionNFT(policy=StableDiffusion3("tiny", LoRA(rank=2)), rollout=Sampler(3, 1.0), samples_per_prompt=2, updates=2, **rest()),
    nft_full=lambda: DiffusionNFT(policy=StableDiffusion3("tiny", Full()), rollout=Sampler(3, 1.0), samples_per_prompt=2, updates=2, **rest()),
    raft=lambda: RAFT(policy=StableDiffusion("tiny", LoRA(rank=2)), rollout=Sampler(3, 2.0), samples_per_prompt=2,
                      **(rest() | dict(reward=WeightedSum(dict(dark=Darkness(), again=Darkness()))))),
    alignprop=lambda: AlignProp(policy=StableDiffusion("tiny", LoRA(rank=2)), rollout=Sampler(4, 2.0), **rest()),
    refl=lambda: ReFL(policy=StableDiffusion("tiny", LoRA(rank=2)), rollout=Sampler(4, 2.0), min_step=1, weight=1.0, **rest()),
    elegant=lambda: ELEGANT(policy=StableDiffusion("tiny", LoRA(rank=2)), rollout=Sampler(3, 2.0, DDIM(1.0)), rollouts=2, **rest()),
    seiko=lambda: SEIKO(policy=StableDiffusion("tiny", LoRA(rank=2)), rollout=Sampler(3, 2.0, DDIM(1.0)), samples_per_prompt=(2,), epochs=5, updates=2,
                        minibatch=2, accumulate=2, **rest()),
    lasro=lambda: LaSRO(policy=StableDiffusion("tiny", LoRA(rank=2)), surrogate=LatentReward(StableDiffusion("tiny"), projection_dim=8), pretrain=1,
                        samples_per_prompt=2, minibatch=4, **rest()),
)


def rest():
    return dict(reward=Darkness(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))


def whole(p):
    return p.full_tensor() if hasattr(p, "full_tensor") else p


class Watch(L.Callback):
    def __init__(self):
        self.reward, self.prompts, self.advantage, self.steps, self.backwards, self.exchanges = [], [], [], 0, 0, 0

    def setup(self, trainer, module, stage):
        log_reward, advantage = module.log_reward, getattr(module, "advantage", None)

        def seen(reward, prompts):
            self.reward.append(reward)
            self.prompts += prompts
            return log_reward(reward, prompts)

        module.log_reward = seen
        if advantage is not None:
            advantage.register_forward_hook(lambda _, given, found: self.advantage.append((*given, found)))

    def on_before_backward(self, trainer, module, loss):
        self.backwards += 1
        self.exchanges += getattr(trainer.strategy.model, "require_backward_grad_sync", True)  # DDP's

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps += 1


if __name__ == "__main__":
    found = {{}}
    for name, make in METHODS.items():
        L.seed_everything(1, verbose=False)
        module, watch = make(), Watch()
        first = [dict(prompt=[f"p{{rank}}", "both"], index=[2 * rank, 2 * rank + 1])] * 2
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if fsdp else "ddp"
        trainer = L.Trainer(strategy=strategy, accelerator="cpu", devices=2, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[watch],
                            enable_progress_bar=False, enable_model_summary=False, default_root_dir=out, use_distributed_sampler=False)
        try:
            trainer.fit(module, torch.utils.data.DataLoader(first, batch_size=None))
        except ValueError as error:
            found[name] = str(error)
            continue
        weights = torch.cat([whole(p.detach()).flatten() for p in module.parameters() if p.requires_grad])
        state = dict(replay=module.replay.pairs, moments=module.moments) if name == "lasro" else getattr(module.reward, "moments", None)
        if name == "seiko":
            state = dict(x=module.reward.x, y=module.reward.y, heads=torch.cat([p.flatten() for p in module.reward.heads.parameters()]))
        found[name] = dict(state=state, reward=torch.cat([r.flatten() for r in watch.reward]), prompts=watch.prompts, advantage=watch.advantage,
                           steps=watch.steps, weights=weights, place=trainer.global_step, backwards=watch.backwards, exchanges=watch.exchanges)
    found["strategy"] = {strategy!r}
    torch.save(found, f"{{out}}/{{rank}}.pt")
    os._exit(0)  # gloo's threads do not always survive the interpreter's own way out
"""


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def ranks(request, tmp_path_factory) -> list[dict]:
    """What each of the two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "run.py"
    script.write_text(SCRIPT.format(root=str(ROOT), out=str(folder), strategy=request.param))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    env |= {"TORCHELASTIC_RUN_ID": "t", "PYTHONPATH": str(ROOT)}
    start = lambda r: subprocess.Popen(
        [sys.executable, str(script)],
        env=env | {"RANK": str(r), "LOCAL_RANK": str(r)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    processes = [start(r) for r in range(2)]
    try:
        outputs = [p.communicate(timeout=400)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert all(p.returncode == 0 for p in processes), outputs[0][-3000:]
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(2)]


NAMES = ["ddpo", "rloo", "tdpo_r", "branch_grpo", "nft", "nft_full", "raft", "alignprop", "refl", "elegant", "seiko", "lasro"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ranks_draw_for_themselves_and_stay_in_step(ranks, name):
    if isinstance(ranks[0][name], str):
        assert "set --trainer.strategy ddp" in ranks[0][name] and name in ("tdpo_r", "elegant", "lasro")  # FSDP does not shard their critics
        return
    a, b = (r[name] for r in ranks)
    assert not torch.equal(a["reward"], b["reward"])  # other prompts, other noise
    assert a["steps"] == b["steps"] > 0 and a["place"] == b["place"] == a["steps"]
    assert torch.equal(a["weights"], b["weights"]) and a["weights"].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name, times", [("ddpo", 2), ("nft", 1), ("raft", 1), ("alignprop", 1), ("seiko", 2)])
def test_gradients_are_exchanged_once_in_an_optimizer_step(ranks, name, times):
    """`times`: backward passes of a step. (FSDP exchanges in every one.)"""
    for r in ranks:
        assert r[name]["backwards"] == times * r[name]["steps"]
        assert r[name]["exchanges"] in (r[name]["steps"], r[name]["backwards"] * (r["strategy"] == "fsdp"))


@pytest.mark.slow
def test_what_is_remembered_is_of_all_ranks(ranks):
    a, b = (r["raft"]["state"] for r in ranks)
    assert torch.equal(a, b) and a[0].tolist() == [16, 16]  # 2 steps of 2 x 4 samples
    a, b = (r["seiko"]["state"] for r in ranks)
    assert all(torch.equal(a[k], b[k]) for k in a) and len(a["y"]) == 16  # 2 loops of 2 x 4 queries
    if isinstance(ranks[0]["lasro"], str):  # refused under FSDP
        return
    a, b = (r["lasro"]["state"] for r in ranks)
    assert a["replay"]["prompt"] == b["replay"]["prompt"] and {"p0", "p1"} < set(a["replay"]["prompt"])
    assert all(torch.equal(a["replay"][k], b["replay"][k]) for k in ("step", "win", "lose")) and torch.equal(a["moments"], b["moments"])


@pytest.mark.slow
@pytest.mark.parametrize("name, advantage", [("ddpo", PerPrompt(4, 3)), ("rloo", LeaveOneOut()), ("tdpo_r", Group()), ("nft", Group())])
def test_advantages_come_from_the_samples_of_all_ranks(ranks, name, advantage):
    if isinstance(ranks[0][name], str):
        assert "set --trainer.strategy ddp" in ranks[0][name] and name == "tdpo_r"  # FSDP does not shard its critic
        return
    a, b = (r[name] for r in ranks)
    advantage = copy.deepcopy(advantage)  # it remembers
    assert len(a["advantage"]) == len(b["advantage"]) == 2
    for (ids, reward, found), (ids_b, reward_b, found_b) in zip(a["advantage"], b["advantage"]):
        assert torch.equal(ids, ids_b) and torch.equal(reward, reward_b) and torch.equal(found, found_b)
        assert len(ids) == 8 and ids.unique(return_counts=True)[1].sort()[0].tolist() == [2, 2, 4]  # p0, p1, both
        torch.testing.assert_close(found, advantage(ids, reward))
    rewards = torch.cat([x.sort()[0] for _, x, _ in a["advantage"]])
    own = [torch.cat([a["reward"].chunk(2)[i], b["reward"].chunk(2)[i]]).sort()[0] for i in range(2)]
    torch.testing.assert_close(rewards, torch.cat(own))
