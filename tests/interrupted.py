"""A DPO run that test_resume stops, kills and resumes: `python -m interrupted FOLDER PAIRS STEPS`."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_align.callbacks import EMA
from parts import trainer

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.checkpoint import AtomicCheckpointIO
from lit_align.data.pick_a_pic import PickAPic
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion


def run(folder, pairs, steps, adapter, ckpt_path=None, every=3):
    L.seed_everything(7, verbose=False)
    ema = EMA(0.9)
    module = DiffusionDPO(policy=StableDiffusion("tiny", adapter()), beta=100.0, caption_dropout=0.3, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    checkpoints = ModelCheckpoint(Path(folder, "checkpoints"), save_last=True, every_n_train_steps=every)
    options = {"accumulate_grad_batches": 2, "plugins": [AtomicCheckpointIO()], "callbacks": [ema, checkpoints], "enable_checkpointing": True}
    t = trainer(folder, max_steps=steps, max_epochs=-1, **options)
    t.fit(module, PickAPic(pairs, resolution=16, batch_size=2), ckpt_path=ckpt_path, weights_only=False)
    return module, ema, t


if __name__ == "__main__":
    folder, pairs, steps = sys.argv[1:]
    run(folder, pairs, int(steps), lambda: LoRA(rank=2), every=2)
