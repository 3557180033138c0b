"""N steps, stop, M steps equals N + M steps, bit for bit; also after kill -9."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from datasets import Dataset
from interrupted import run
from parts import Darkness, prompts, trainer

from lit_align.algorithms.parts.advantages import PerPrompt
from lit_align.algorithms.parts.replay import Replay
from lit_align.algorithms.parts.surrogate import Surrogate
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.reward_weighted.bond import BOND
from lit_align.algorithms.reward_weighted.max_min import MaxMin
from lit_align.algorithms.reward_weighted.rewards_in_context import RewardsInContext
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.jpeg import JPEGCompressibility
from lit_align.rewards.multi_reward import WeightedSum
from lit_align.shapes.make.lists import jpeg
from lit_align.shapes.make.pairs import row

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    g = torch.Generator().manual_seed(0)
    rows = [row(f"p{i}", jpeg(torch.rand(3, 16, 16, generator=g)), jpeg(torch.rand(3, 16, 16, generator=g)), float(i % 2), "m", i, 0) for i in range(11)]
    path = tmp_path_factory.mktemp("pairs") / "train.parquet"
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("given", ["reads", "nothing"])
def test_what_lives_across_steps_is_a_leaf_of_a_sharded_checkpoint(tmp_path, given):
    """Which loads what the fresh state names, in its shapes: a dictionary would lose the entries it has not yet."""
    from torch.distributed import checkpoint as dcp

    policy, black_box = StableDiffusion("tiny"), Darkness()
    make = {
        "memory": lambda: PerPrompt(4, 2),
        "replay": lambda: Replay(8),
        "surrogate": lambda: Surrogate(black_box, policy, epochs=1),
    }
    old, new = ({name: part() for name, part in make.items()} for _ in range(2))
    if given == "reads":
        old["memory"](torch.tensor([3, 3, 5]), torch.tensor([1.0, 2.0, 7.0]))
        old["replay"].add({"prompt": ["a", "b"], "win": torch.rand(2, 3)})
        image = torch.rand(3, 3, policy.resolution, policy.resolution)
        old["surrogate"].fit(old["surrogate"].describe(image, ["a"] * 3), torch.rand(3))
    dcp.save({name: part.get_extra_state() for name, part in old.items()}, checkpoint_id=tmp_path / "c", no_dist=True)
    states = {name: part.get_extra_state() for name, part in new.items()}
    dcp.load(states, checkpoint_id=tmp_path / "c", no_dist=True)
    for name, part in new.items():
        part.set_extra_state(states[name])
        assert same(part.get_extra_state(), old[name].get_extra_state())


def state(folder):
    return torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=False)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("adapter", [lambda: LoRA(rank=2), Full], ids=["lora", "full"])
def test_stopping_and_going_on_changes_no_bit(tmp_path, pairs, adapter):
    run(tmp_path / "whole", pairs, 9, adapter)
    run(tmp_path / "parts", pairs, 6, adapter)
    _, _, trainer = run(tmp_path / "parts", pairs, 9, adapter, ckpt_path="last")
    assert trainer.global_step == 9
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert same(whole["state_dict"], parts["state_dict"])
    assert same(whole["optimizer_states"], parts["optimizer_states"])
    ema = next(k for k in whole["callbacks"] if k.startswith("EMA"))
    assert same(whole["callbacks"][ema], parts["callbacks"][ema])


SD, SD3 = (lambda: StableDiffusion("tiny", LoRA(rank=2))), (lambda: StableDiffusion3("tiny", LoRA(rank=2)))
NOISY = dict(rollout=Sampler(3, 1.0, DDIM(1.0)), samples_per_prompt=2)
REWARDED = {  # what lives across steps besides weights and optimizer
    "per-prompt statistics, a sum's moments": lambda: DDPO(policy=SD(), reward=WeightedSum({"a": Darkness(), "b": JPEGCompressibility()}), advantage=PerPrompt(4, 2), **NOISY),
    "a drawn window": lambda: FlowGRPO(policy=SD3(), reward=Darkness(), rollout=Sampler(5, 1.0, FlowSDE()), samples_per_prompt=2, window=1),
    "a sliding window": lambda: FlowGRPO(policy=SD3(), reward=Darkness(), rollout=Sampler(5, 1.0, FlowSDE()), samples_per_prompt=2, window=1, slide_every=1, beta=0.0),
    "a value function": lambda: DPOK(policy=SD(), reward=Darkness(), **NOISY),
    "a moving anchor": lambda: BOND(policy=SD(), reward=Darkness(), refresh_every=2, updates=1, **NOISY),
    "annotators' weights": lambda: MaxMin(policy=SD(), annotators={"a": Darkness(), "b": JPEGCompressibility()}, rate=0.5, updates=1, **NOISY),
    "moments of rewards": lambda: RewardsInContext(policy=SD(), conditions={"a": Darkness()}, updates=1, **NOISY),
}  # fmt: skip


@pytest.mark.parametrize("kept", REWARDED)
def test_what_lives_across_steps_is_in_the_checkpoint(kept, tmp_path):
    def train(epochs, ckpt_path=None):
        L.seed_everything(3, verbose=False)
        method = REWARDED[kept]()
        method.optimizer = lambda p: torch.optim.AdamW(p, lr=1e-2)
        fit = trainer(tmp_path, max_epochs=epochs)
        fit.fit(method, prompts(2, 2), ckpt_path=ckpt_path, weights_only=False)
        return method, fit

    whole, fit = train(2)
    train(1)[1].save_checkpoint(tmp_path / "half.ckpt")
    parts, again = train(2, tmp_path / "half.ckpt")
    assert fit.global_step == again.global_step == 4
    assert same(whole.state_dict(), parts.state_dict())
    assert same(whole.optimizers().optimizer.state_dict(), parts.optimizers().optimizer.state_dict())


def test_a_checkpoint_holds_what_is_trained_and_no_more(tmp_path, pairs):
    module, _, _ = run(tmp_path, pairs, 3, lambda: LoRA(rank=2))
    saved = state(tmp_path)["state_dict"]
    assert set(saved) == {n for n, p in module.named_parameters() if p.requires_grad}
    assert Path(tmp_path, "checkpoints/last.ckpt").stat().st_size < 5e5


def test_init_from_takes_the_weights_alone(tmp_path, pairs):
    module, _, _ = run(tmp_path, pairs, 3, Full)
    weights = state(tmp_path)["state_dict"]
    fresh = DiffusionDPO(policy=StableDiffusion("tiny"), init_from=str(tmp_path / "checkpoints/last.ckpt"))
    fresh.initialise()
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in weights.items())
    fresh.policy.add_reference()
    assert torch.equal(next(fresh.policy._frozen.parameters()), next(iter(weights.values())))
    with pytest.raises(ValueError, match="holds no weight of this policy"):
        DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2)), init_from=str(tmp_path / "checkpoints/last.ckpt")).initialise()


def test_init_from_reaches_what_a_method_trains_beside_the_policy(tmp_path):
    make = lambda **kwargs: DPOK(policy=SD(), reward=Darkness(), **NOISY, **kwargs)
    first, t = make(optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2)), trainer(tmp_path)
    t.fit(first, prompts(2, 2))
    t.save_checkpoint(tmp_path / "some.ckpt")
    then = make(init_from=str(tmp_path / "some.ckpt"), optimizer=lambda groups: torch.optim.SGD([{"params": g["params"]} for g in groups], lr=0.0))
    trainer(tmp_path).fit(then, prompts(2))
    assert same(first.state_dict(), then.state_dict())
    assert not same(first.value.state_dict(), make().value.state_dict())


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, pairs):
    adapter = lambda: LoRA(rank=2)
    run(tmp_path / "whole", pairs, 8, adapter, every=2)
    command = [sys.executable, "-m", "interrupted", str(tmp_path / "killed"), pairs, "10000"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "killed/checkpoints/last.ckpt"
    until = time.time() + 120
    while not last.exists() and time.time() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stopped_at = torch.load(last, weights_only=False)["global_step"]  # whole, whenever the kill came
    if stopped_at >= 8:
        run(tmp_path / "whole", pairs, stopped_at + 2, adapter, every=2)
    target = max(8, stopped_at + 2) if stopped_at >= 8 else 8
    run(tmp_path / "killed", pairs, target, adapter, ckpt_path="last", every=2)
    whole, killed = state(tmp_path / "whole"), state(tmp_path / "killed")
    assert whole["global_step"] == killed["global_step"] == target
    assert same(whole["state_dict"], killed["state_dict"]) and same(whole["optimizer_states"], killed["optimizer_states"])
