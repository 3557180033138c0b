import time

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from callbacks import Throughput

LOAD, STEP, VALIDATE, ROWS = 0.02, 0.06, 0.5, 3


class Slow(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch, i):
        time.sleep(STEP)
        return self.net.weight.sum()

    def validation_step(self, batch, i):
        time.sleep(VALIDATE)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())

    def train_dataloader(self):
        def load(rows):
            time.sleep(LOAD)
            return {"prompt": ["a"] * ROWS}

        return DataLoader(range(6), batch_size=1, collate_fn=load)

    def val_dataloader(self):
        return DataLoader(torch.zeros(1, 1))


class Logged(L.Callback):
    """What `perf/...` said after each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, *_):
        self.steps.append({k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("perf/")})


@pytest.fixture
def steps(trainer):
    logged = Logged()
    trainer([Throughput(), logged], val_check_interval=2).fit(Slow())
    return [step for step in logged.steps if step]


def test_step_data_and_rate_agree_with_the_clock(steps):
    for step in steps:
        assert STEP * 1e3 <= step["perf/step_ms"] < 3 * STEP * 1e3
        assert step["perf/images_per_s"] <= ROWS / STEP
    assert sum(step["perf/data_ms"] >= LOAD * 1e3 for step in steps) >= 1
    assert steps[0]["perf/peak_memory_mb"] > 50  # torch alone takes more


def test_validation_is_left_out(steps):
    assert min(step["perf/images_per_s"] for step in steps) > ROWS / VALIDATE


def test_time_between_two_fits_is_left_out(trainer):
    throughput, logged = Throughput(), Logged()
    for _ in range(2):
        trainer([throughput, logged], limit_val_batches=0).fit(Slow())
        time.sleep(VALIDATE)
    assert min(step["perf/images_per_s"] for step in logged.steps if step) > ROWS / VALIDATE
