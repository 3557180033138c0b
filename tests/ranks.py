"""What each of two ranks runs for test_two_ranks: `python -m ranks ddp FOLDER` under torchrun's environment."""

import os
import sys

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from parts import Darkness, spy, trainer
from servers import darkness, scripted_server

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
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.http import HTTPReward
from lit_align.rewards.latent import LatentReward
from lit_align.rewards.multi_reward import WeightedSum


def sd(cls, **kwargs):
    return cls(policy=StableDiffusion("tiny", LoRA(rank=2)), **(rest() | kwargs))


def sd3(cls, adapter=None, **kwargs):
    return cls(policy=StableDiffusion3("tiny", adapter or LoRA(rank=2)), **(rest() | kwargs))


def rest():
    return {"reward": Darkness(), "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}


KEPT = []  # servers that run to the end


def patchy():
    """Darkness from a server, which cannot score the second sample of rank 0 in each batch of four."""
    asked = []

    def answer(body):
        asked.append(body)
        return (500, b"") if os.environ["RANK"] == "0" and len(asked) % 4 == 2 else darkness(body)

    KEPT.append(scripted_server(answer))
    url, _ = KEPT[-1].__enter__()
    return HTTPReward([url], batch_size=1, concurrency=1, retries=0, on_failure="mask")


NOISY = {"rollout": Sampler(3, 2.0, DDIM(1.0)), "samples_per_prompt": 2, "minibatch": 4}
NFT = {"rollout": Sampler(3, 1.0), "samples_per_prompt": 2, "updates": 2}
METHODS = {
    "ddpo": lambda: sd(DDPO, advantage=PerPrompt(4, 3), updates=2, **NOISY),
    "rloo": lambda: sd(DDPO, advantage=LeaveOneOut(), **NOISY),
    "masked": lambda: sd(DDPO, advantage=LeaveOneOut(), reward=patchy(), **NOISY),
    "tdpo_r": lambda: sd(TDPOR, advantage=Group(), reset_every=1, **NOISY),
    "branch_grpo": lambda: sd3(BranchGRPO, splits=(0, 1), minibatch=4, rollout=Sampler(3, 2.0, FlowSDE())),
    "nft": lambda: sd3(DiffusionNFT, **NFT),
    "nft_full": lambda: sd3(DiffusionNFT, Full(), **NFT),
    "raft": lambda: sd(RAFT, rollout=Sampler(3, 2.0), samples_per_prompt=2, reward=WeightedSum({"dark": Darkness(), "again": Darkness()})),
    "alignprop": lambda: sd(AlignProp, rollout=Sampler(4, 2.0)),
    "refl": lambda: sd(ReFL, rollout=Sampler(4, 2.0), min_step=1, weight=1.0),
    "elegant": lambda: sd(ELEGANT, rollout=Sampler(3, 2.0, DDIM(1.0)), rollouts=2),
    "seiko": lambda: sd(SEIKO, rollout=Sampler(3, 2.0, DDIM(1.0)), samples_per_prompt=(2,), epochs=5, updates=2, minibatch=2, accumulate=2),
    "lasro": lambda: sd(LaSRO, surrogate=LatentReward(StableDiffusion("tiny"), projection_dim=8), pretrain=1, samples_per_prompt=2, minibatch=4),
}


class Watch(L.Callback):
    """Counts optimizer steps, backward passes and gradient exchanges, and keeps the advantages."""

    def __init__(self):
        self.advantage, self.steps, self.backwards, self.exchanges = [], 0, 0, 0

    def setup(self, trainer, module, stage):
        if hasattr(module, "advantage"):
            module.advantage.register_forward_hook(lambda _, given, found: self.advantage.append((*given, found)))

    def on_before_backward(self, trainer, module, loss):
        self.backwards += 1
        self.exchanges += getattr(trainer.strategy.model, "require_backward_grad_sync", True)  # DDP's

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps += 1


def whole(p):
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def state(name, module):
    """What a method remembers besides its weights."""
    if name == "lasro":
        return {"replay": module.replay.pairs, "moments": module.moments}
    if name == "seiko":
        return {"x": module.reward.x, "y": module.reward.y, "heads": torch.cat([p.flatten() for p in module.reward.heads.parameters()])}
    return getattr(module.reward, "moments", None)


def fit(name, strategy, folder) -> dict | str:
    """What this rank saw of two training batches, or why the method refuses the strategy."""
    L.seed_everything(1, verbose=False)
    rank, module, watch = int(os.environ["RANK"]), METHODS[name](), Watch()
    batch = {"prompt": [f"p{rank}", "both"], "index": [2 * rank, 2 * rank + 1]}
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if strategy == "fsdp" else "ddp"
    t = trainer(folder, strategy=sharded, devices=2, callbacks=[watch], use_distributed_sampler=False)
    try:
        with spy(module, "log_reward") as log_reward:
            t.fit(module, torch.utils.data.DataLoader([batch] * 2, batch_size=None))
    except ValueError as error:
        return str(error)
    weights = torch.cat([whole(p.detach()).flatten() for p in module.parameters() if p.requires_grad])
    found = {"state": state(name, module), "weights": weights, "place": t.global_step}
    found |= {"reward": torch.cat([reward.flatten() for reward in log_reward.results])}
    return found | {k: getattr(watch, k) for k in ("advantage", "steps", "backwards", "exchanges")}


if __name__ == "__main__":
    strategy, folder = sys.argv[1:]
    found = {name: fit(name, strategy, folder) for name in METHODS} | {"strategy": strategy}
    torch.save(found, f"{folder}/{os.environ['RANK']}.pt")
    os._exit(0)  # gloo's threads do not always survive the interpreter's own way out
