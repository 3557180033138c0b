"""One run of Diffusion-DPO for test_scale: `python -m sharded FOLDER STRATEGY [options]`, in each rank's environment."""

import argparse
import os
from unittest import mock

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lit_align.callbacks import EMA
from lit_align.callbacks.trainable import whole

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.data.datamodule import AlignData
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion


def latents(row, n=2):
    """Functions of the row, so that one process and two see the same ones."""
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(row))


class Pairs(torch.utils.data.Dataset):
    """Latents by row, so that no posterior is sampled."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        win, lose = latents(i)
        return {"prompt": f"p{i}", "index": i, "win_latents": win, "lose_latents": lose}


class Data(AlignData):
    def load(self, split):
        return Pairs() if split == "train" else None

    def collate(self, rows):
        return {k: torch.stack([r[k] for r in rows]) if "latents" in k else [r[k] for r in rows] for k in rows[0]}


class Fixed(DiffusionDPO):
    """Timestep and noise are functions of the row."""

    def errors(self, batch):
        rows = [i % 16 for i in batch["index"]]
        t, eps = torch.tensor(rows) * 60 + 20, torch.cat([latents(100 + i, 1) for i in rows])
        with mock.patch.object(self, "noise", lambda x_0, cond: (t.repeat(2), eps.repeat(2, 1, 1, 1))):
            return super().errors(batch)


class Record(L.Callback):
    """The mean loss of every batch over all ranks, the trained tensors without gradient, and the weights at the end."""

    def __init__(self, folder):
        self.folder, self.losses, self.missing = folder, [], []

    def on_after_backward(self, trainer, module):
        self.missing = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(module.all_gather(outputs["loss"]).mean().item())

    def on_train_end(self, trainer, module):
        weights = {n: whole(p.data) for n, p in module.named_parameters() if p.requires_grad}
        if module.global_rank == 0:
            found = {"losses": self.losses, "weights": weights, "missing": self.missing}
            torch.save(found, os.path.join(self.folder, "result.pt"))


def strategy(name):
    if not name.startswith("fsdp"):
        return name
    whole_files = {"save_distributed_checkpoint": False} if name == "fsdp_single" else {}
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, **whole_files)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("strategy", choices=("auto", "ddp", "fsdp", "fsdp_single"))
    parser.add_argument("--adapter", default="lora")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--ckpt")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    L.seed_everything(1, verbose=False)
    world = 1 if args.strategy == "auto" else 2
    policy = StableDiffusion("tiny", LoRA(rank=2) if args.adapter == "lora" else Full())
    module = Fixed(policy=policy, beta=100.0, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    keep = ModelCheckpoint(os.path.join(args.folder, "checkpoints"), save_last="link", every_n_train_steps=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy(args.strategy),
        precision=args.precision,
        max_steps=args.steps,
        max_epochs=-1,
        default_root_dir=args.folder,
        gradient_clip_val=1.0,
        callbacks=[EMA(0.9), keep, Record(args.folder)],
        **quiet,
    )
    trainer.fit(module, Data(batch_size=4 // world), ckpt_path=args.ckpt, weights_only=False)
    os._exit(0)  # gloo's threads do not always survive the interpreter's own way out


if __name__ == "__main__":
    main()
