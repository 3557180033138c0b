import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader


class Regression(L.LightningModule):
    """Trains one layer of two; deterministic data, so that two runs differ only by what a callback does."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen, self.net = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.data = torch.randn(8, 2, 4, generator=generator)
        self.seen = []  # the weight that each validation step ran with

    def training_step(self, x, i):
        return (self.net(self.frozen(x)) - x.roll(1, -1)).square().mean()

    def validation_step(self, x, i):
        self.seen.append(self.net.weight.detach().clone())

    def predict_step(self, x, i):
        self.validation_step(x, i)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=0.05)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.data[:1], batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


@pytest.fixture
def module():
    return Regression


@pytest.fixture
def trainer(tmp_path):
    def make(callbacks, **kwargs):
        options = {
            "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": tmp_path, "num_sanity_val_steps": 0, "max_epochs": 1,
        }  # fmt: skip
        return L.Trainer(callbacks=callbacks, **options | kwargs)

    return make
