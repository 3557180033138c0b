"""What a run's terminal and its log file show."""

import os
import pty
import re
import select
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lit_align.callbacks import Progress, Summary, progress
from torch.utils.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Line(L.LightningModule):
    """Two optimizer steps a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.model = torch.nn.Linear(1, 1)
        self.fixed = torch.nn.Linear(1, 4).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            self.optimizers().step()
        self.log_dict({"train/loss": 0.25, "train/margin": 1e-3, "train/other": 7.0})

    def validation_step(self, batch, batch_idx):
        self.log("val/reward/exact", 0.5)

    def test_step(self, batch, batch_idx):
        self.log("test/reward/exact", 0.75)

    def predict_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters())


def trainer(tmp_path, *callbacks, **kwargs) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=str(tmp_path),
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks],
        **kwargs,
    )


@pytest.mark.parametrize(
    "length, unit, total, every",
    [
        ({"max_steps": 20, "max_epochs": -1}, "steps", 20, 2),
        ({"max_epochs": 2}, "batches", 10, 1),
        ({"max_epochs": 2, "limit_train_batches": 3}, "batches", 6, 1),
    ],
)
def test_a_log_file_gets_a_line_every_tenth(tmp_path, capsys, length, unit, total, every):
    data = DataLoader(torch.zeros(5, 1))
    run = trainer(tmp_path, Progress(log_seconds=1e9), val_check_interval=1.0, enable_model_summary=False, **length)
    run.fit(Line(), data, DataLoader(torch.zeros(2, 1)))
    out = capsys.readouterr().err
    assert "\r" not in out
    lines = re.findall(rf"^(\d+)/{total} {unit} ", out, re.M)
    assert [int(done) for done in lines] == list(range(every, total + 1, every))
    assert re.search(r"loss 0.25, margin 0.001$", out, re.M) and "other" not in out
    assert len(re.findall(r"^validation at step \d+: reward/exact 0.5 \(00:00\)$", out, re.M)) == run.current_epoch


def test_lines_by_time_where_the_length_is_unknown(tmp_path, capsys):
    progress = Progress(log_seconds=0.0)
    run = trainer(tmp_path, progress, max_time="00:00:00:02", enable_model_summary=False, max_epochs=-1)
    run.fit(Line(), DataLoader(torch.zeros(5, 1)))
    assert re.search(r"^2/2 seconds \(100 %\), 00:0[12] gone, 00:00 left", capsys.readouterr().err, re.M)
    progress.begin(None)
    progress.advance(7, {"reward": 2.0})
    assert capsys.readouterr().err == "7 steps, 00:00 gone, reward 2\n"


def test_a_terminal_gets_one_bar(tmp_path, monkeypatch):
    master, slave = pty.openpty()
    os.system(f"stty cols 100 rows 30 < {os.ttyname(slave)}")
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        run = trainer(tmp_path, Progress(), max_epochs=-1, max_steps=20, val_check_interval=1.0, enable_model_summary=False)
        run.fit(Line(), DataLoader(torch.zeros(5, 1)), DataLoader(torch.zeros(2, 1)))
        terminal.flush()
        os.set_blocking(master, False)
        shown = b""
        while select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 4096)
    shown = shown.decode()
    frames = re.findall(r"\d+%\|.{20}\| \d+/20 steps [^\r\n]*", shown)
    assert frames and all("Epoch" not in frame for frame in frames)
    assert "20/20 steps" in frames[-1] and "loss 0.25, margin 0.001" in frames[-1]
    assert shown.count("validation at step") == 2


@pytest.mark.parametrize("command, said", [("test", "test: reward/exact 0.75 "), ("validate", "validation at step 0: reward/exact 0.5 ")])
def test_a_test_is_one_line(tmp_path, capsys, command, said):
    run = trainer(tmp_path, Progress(), enable_model_summary=False)
    getattr(run, command)(Line(), DataLoader(torch.zeros(2, 1)))
    out, error = capsys.readouterr()
    assert said in error and "2/2 batches (100 %)" in error
    assert "Test metric" not in out
    run.predict(Line(), DataLoader(torch.zeros(3, 1)))
    assert "3/3 batches (100 %)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "length, rest",
    [
        ({"max_steps": 20, "max_epochs": -1}, ", about 70 s for the 14 steps left, validations not counted"),
        ({"max_epochs": 2}, ", about 70 s for the 7 batches left, validations not counted"),
        ({"max_epochs": -1, "max_time": "00:00:00:02"}, ""),
    ],
)
def test_memory_and_time_after_the_first_steps(tmp_path, capsys, monkeypatch, length, rest):
    """A batch is two optimizer steps, and takes 10 s: the line comes with the third batch. Validations take 1,000 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(Line):
        def training_step(self, batch, batch_idx):
            clock.now += 10 if self.global_step else 500  # the first compiles
            super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock.now += 1000

    run = trainer(tmp_path, Progress(), val_check_interval=2, enable_model_summary=False, **length)
    run.fit(Slow(), DataLoader(torch.zeros(5, 1)), DataLoader(torch.zeros(1, 1)))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "peak memory" in x]
    memory = re.fullmatch(rf"after 6 steps: peak memory ([\d.]+) GB, 5 s a step{re.escape(rest)}", line)
    assert 0.1 < float(memory[1]) < 100


def test_memory_of_a_gpu_is_told_with_what_it_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9.8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * 2**30))
    assert progress.memory(torch.device("cuda", 0)) == "9.8 of the GPU's 24 GB"


@pytest.mark.parametrize("seconds, said", [(0.034, "0.034 s"), (119, "119 s"), (125, "2.1 min"), (3000, "50 min"), (12000, "3.3 h"), (1e6, "278 h")])
def test_durations(seconds, said):
    assert progress.duration(seconds) == said


def test_the_summary_says_what_is_trained_and_where_results_are(tmp_path, capsys):
    (tmp_path / "policy").mkdir()
    run = trainer(tmp_path, Summary(lambda: ["data Zeros"]), enable_progress_bar=False, max_steps=4, max_epochs=-1)
    run.fit(Line(), DataLoader(torch.zeros(5, 1)))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Line trains 2 parameters (model.weight, model.bias), 8 frozen",
        "data Zeros",
        "on cpu, precision 32-true",
        f"results in {tmp_path}",
        f"trained 4 steps; in {tmp_path}:",
        "  policy       trained weights, for diffusers",
    ]
