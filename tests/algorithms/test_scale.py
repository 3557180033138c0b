"""Two gloo processes on the CPU: DDP and FSDP2 do what one process does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

SCRIPT = '''
import os, sys
sys.path.insert(0, {root!r})
import lightning as L, torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_align.callbacks import EMA
from lit_align.callbacks.trainable import whole
from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.data.datamodule import AlignData
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion

strategy, adapter, precision, ckpt, steps, out = {args!r}


class Pairs(torch.utils.data.Dataset):
    """Latents by row, so that no posterior is sampled."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        win, lose = torch.randn(2, 4, 8, 8, generator=g)
        return dict(prompt=f"p{{i}}", index=i, win_latents=win, lose_latents=lose)


class Data(AlignData):
    def load(self, split):
        return Pairs() if split == "train" else None

    def collate(self, rows):
        return {{k: torch.stack([r[k] for r in rows]) if "latents" in k else [r[k] for r in rows] for k in rows[0]}}


class Fixed(DiffusionDPO):
    """Timestep and noise are functions of the row, so that one process and two see the same ones."""

    def errors(self, batch):
        process, policy = self.policy.process, self.policy
        index = torch.tensor(batch["index"]) % 16
        t = index * 60 + 20
        eps = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(100 + int(i))) for i in index])
        draw, rand = process.sample_timesteps, torch.randn_like
        process.sample_timesteps = lambda n, law, device=None: t
        torch.randn_like = lambda x: eps
        try:
            return super().errors(batch)
        finally:
            process.sample_timesteps, torch.randn_like = draw, rand

    def on_after_backward(self):
        grads = {{n: p.grad for n, p in self.named_parameters() if p.requires_grad}}
        self.missing = [n for n, g in grads.items() if g is None]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        loss = self.all_gather(outputs["loss"]).mean().item()
        self.losses = getattr(self, "losses", []) + [loss]

    def on_train_end(self):
        super().on_train_end()
        weights = {{n: whole(p.data) for n, p in self.named_parameters() if p.requires_grad}}
        if self.global_rank == 0:
            torch.save(dict(losses=self.losses, weights=weights, missing=self.missing), out + "/result.pt")


if __name__ == "__main__":
    L.seed_everything(1, verbose=False)
    world = 1 if strategy == "auto" else 2
    strategies = dict(auto="auto", ddp="ddp", fsdp=lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
                      fsdp_single=lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False))
    chosen = strategies[strategy]
    module = Fixed(policy=StableDiffusion("tiny", LoRA(rank=2) if adapter == "lora" else Full()), beta=100.0,
                   optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    trainer = L.Trainer(accelerator="cpu", devices=world, strategy=chosen() if callable(chosen) else chosen, precision=precision, max_steps=steps,
                        max_epochs=-1, logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=out, gradient_clip_val=1.0,
                        callbacks=[EMA(0.9), ModelCheckpoint(out + "/checkpoints", save_last="link", every_n_train_steps=2)])
    trainer.fit(module, Data(batch_size=4 // world), ckpt_path=ckpt, weights_only=False)
    os._exit(0)  # gloo's threads do not always survive the interpreter's own way out
'''


def run(folder, strategy, adapter="lora", precision="32-true", ckpt=None, steps=4):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "run.py"
    script.write_text(SCRIPT.format(root=str(ROOT), args=(strategy, adapter, precision, ckpt, steps, str(folder))))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    single = strategy == "auto"
    if single:
        env.pop("WORLD_SIZE")
    rank = lambda r: {} if single else {"RANK": str(r), "LOCAL_RANK": str(r), "TORCHELASTIC_RUN_ID": "t"}
    start = lambda r: subprocess.Popen([sys.executable, str(script)], env=env | rank(r), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ranks = [start(r) for r in range(1 if single else 2)]
    try:
        outputs = [p.communicate(timeout=240)[0] for p in ranks]
    finally:
        for p in ranks:
            p.kill()
    assert all(p.returncode == 0 for p in ranks), outputs[0][-3000:]
    return torch.load(folder / "result.pt", weights_only=False)


@pytest.fixture(scope="module", params=["lora", "full"])
def one(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"one_{request.param}")
    return request.param, run(folder, "auto", request.param), folder


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a["losses"], b["losses"], atol=atol, rtol=1e-4)
    assert a["weights"].keys() == b["weights"].keys()
    for name in a["weights"]:
        torch.testing.assert_close(a["weights"][name], b["weights"][name], atol=atol, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_of_ddp_equal_one(one, tmp_path):
    adapter, alone, _ = one
    close(run(tmp_path, "ddp", adapter), alone, atol=2e-4)


@pytest.mark.slow
def test_two_processes_of_fsdp2_equal_one_and_every_tensor_gets_a_gradient(one, tmp_path):
    adapter, alone, _ = one
    sharded = run(tmp_path, "fsdp", adapter)
    close(sharded, alone, atol=2e-4)
    assert sharded["missing"] == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_single"])
def test_sharded_and_single_file_checkpoints_resume(tmp_path, strategy):
    whole = run(tmp_path / "whole", strategy, steps=4)
    run(tmp_path / "parts", strategy, steps=2)
    last = tmp_path / "parts/checkpoints/last.ckpt"  # a link, set once what it names is written: never half a checkpoint
    assert last.is_symlink() and last.is_dir() == (strategy == "fsdp")
    rest = run(tmp_path / "parts", strategy, steps=4, ckpt=str(last))
    for name, w in whole["weights"].items():
        torch.testing.assert_close(rest["weights"][name], w, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_bf16_mixed_trains_sharded(tmp_path):
    result = run(tmp_path, "fsdp", "lora", "bf16-mixed", steps=2)
    assert all(torch.isfinite(torch.tensor(result["losses"]))) and result["missing"] == []
    assert result["losses"][0] == pytest.approx(0.6931, abs=0.02)
    assert all(w.dtype == torch.float32 for w in result["weights"].values())
