"""The command line on a model whose weight is known in closed form: loss (w - 1)^2 from w = 0 under SGD."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import OptimizerCallable
from torch.utils.data import DataLoader

from lit_align import cli

LR = 0.1
BEST = 3  # the step at which `score` is highest


def weight_after(steps: int) -> float:
    return 1 - (1 - 2 * LR) ** steps


class Method(L.LightningModule):
    pass


class Parabola(Method):
    """A weight that goes to 1.

    Args:
        beta: a number without effect.
    """

    die_at = -1  # the step that fails

    def __init__(self, beta: float = 1.0, optimizer: OptimizerCallable = torch.optim.SGD):
        super().__init__()
        if beta < 0:
            raise ValueError(f"beta is {beta}: give a positive one.")
        self.save_hyperparameters()
        self.beta, self.optimizer = beta, optimizer
        self.w = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        if self.global_step == self.die_at:
            raise RuntimeError("killed")
        self.log("score", -abs(self.global_step + 1.0 - BEST))
        return (self.w - 1) ** 2

    def test_step(self, batch, batch_idx):
        self.inference_mode = torch.is_inference_mode_enabled()

    def predict_step(self, batch, batch_idx):
        return self.w

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Cubic(Method):
    def __init__(self, base: float = 1.0):
        super().__init__()


class Source(L.LightningDataModule):
    @staticmethod
    def check(kind: str):
        raise {"ValueError": ValueError, "KeyError": KeyError}[kind]("row 3 has no image: give it one.")


class Zeros(Source):
    def __init__(self, size: int = 8):
        super().__init__()
        self.size = size

    def train_dataloader(self):
        return DataLoader(torch.zeros(self.size))

    test_dataloader = predict_dataloader = train_dataloader


CONFIG = f"""
model: {{class_path: Parabola, init_args: {{optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: {LR}}}}}}}}}
data: {{class_path: Zeros}}
trainer:
  accelerator: cpu
  max_steps: 4
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {{save_last: true, every_n_train_steps: 1, monitor: score, mode: max, filename: "{{step}}"}}
"""


def write_configs(folder: Path) -> None:
    for name, text in {
        "sdxl.yaml": "",
        "small/parabola.yaml": CONFIG,
        "small/tall_parabola.yaml": "",
        "small/twice.yaml": "",
        "with/twice.yaml": "",
        "with/beta.yaml": "model: {init_args: {beta: 3}}\ntrainer: {max_steps: 2}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def run(command: str) -> cli.CLI:
    return cli.main(command.split(), Method, Source)


def printed(command: str, capsys) -> dict:
    with pytest.raises(SystemExit) as exit:
        run(f"{command} --print_config")
    assert exit.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def complaint(command: str, capsys) -> str:
    """What a refused command says: one line, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run(command)
    assert exit.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lit_align: ")]
    return line
