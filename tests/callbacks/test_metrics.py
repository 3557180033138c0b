import types

import lightning as L
import pytest
import torch
from lit_align.callbacks import CPUTime, Throughput, cpu_time, metrics
from torch import nn
from torch.utils.data import DataLoader

LOAD, STEP, VALIDATE, ROWS = 0.5, 1.5, 100.0, 3  # seconds of a clock that only these things move


class Slow(L.LightningModule):
    def __init__(self, clock):
        super().__init__()
        self.net, self.clock = nn.Linear(1, 1), clock

    def training_step(self, batch, i):
        self.clock.now += STEP
        return self.net.weight.sum()

    def validation_step(self, batch, i):
        self.clock.now += VALIDATE

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())

    def train_dataloader(self):
        def load(rows):
            self.clock.now += LOAD
            return {"prompt": ["a"] * ROWS}

        return DataLoader(range(5), batch_size=1, collate_fn=load)

    def val_dataloader(self):
        return DataLoader(torch.zeros(1, 1))


class Logged(L.Callback):
    """What `perf/...` said after each step that it was logged in."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, *_):
        values = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("perf/")}
        self.steps += [values] if values else []


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_rate_and_its_parts(trainer, clock):
    logged = Logged()
    trainer([Throughput(), logged], limit_val_batches=0).fit(Slow(clock))
    assert len(logged.steps) == 4  # there is nothing to measure the first from
    assert {step["perf/step_ms"] for step in logged.steps} == {STEP * 1e3}
    assert {step["perf/data_ms"] for step in logged.steps} == {LOAD * 1e3}
    assert {step["perf/images_per_s"] for step in logged.steps} == {ROWS / (STEP + LOAD)}
    assert logged.steps[0]["perf/peak_memory_mb"] > 50  # MB; torch alone takes more


def test_validation_and_what_lies_between_two_fits_are_left_out(trainer, clock):
    throughput, logged = Throughput(), Logged()
    for _ in range(2):
        trainer([throughput, logged], val_check_interval=2).fit(Slow(clock))
        clock.now += VALIDATE
    assert min(step["perf/images_per_s"] for step in logged.steps) == pytest.approx(ROWS / (STEP + LOAD))


def test_cpu_time_ends_training_at_the_first_batch_beyond_it(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=7.0)
    monkeypatch.setattr(cpu_time.time, "process_time", lambda: clock.now)
    trainer = L.Trainer(max_epochs=-1, callbacks=[CPUTime(2 * STEP + LOAD * 2)], accelerator="cpu", enable_progress_bar=False, logger=False, default_root_dir=tmp_path, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(Slow(clock))
    assert trainer.global_step == 2 and trainer.callback_metrics["perf/cpu_seconds"] >= 2 * STEP + LOAD
    with pytest.raises(ValueError, match="seconds is 0"):
        CPUTime(0)
