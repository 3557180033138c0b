"""What tests of datasets share: pictures, pair files, a module that notes what it is fed."""

import io
from collections import Counter

import lightning as L
import torch
from datasets import Dataset
from PIL import Image

from lit_align.shapes.make.pairs import row


def picture(color, size=(20, 20), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))


def pick_a_pic(path, labels, has_label=True, images=(RED, BLUE)):
    rows = [row(f"prompt {i}", *images, label, "m", i, 0) | {"has_label": has_label} for i, label in enumerate(labels)]
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=tmp_path, **(quiet | {"enable_checkpointing": False} | kwargs))


class Watcher(L.LightningModule):
    """Notes what it is fed."""

    def __init__(self):
        super().__init__()
        self.w, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["index"])
        return self.w * 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, tmp_path, module=None, ckpt_path=None, **kwargs):
    module = module or Watcher()
    t = trainer(tmp_path, **({"max_epochs": 1} | kwargs))
    t.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
    return module, t


def passes(seen, batches):
    return [sorted(sum(seen[i : i + batches], [])) for i in range(0, len(seen), batches)]


class Encoding(Watcher):
    """Counts what it encodes and keeps its batches."""

    def __init__(self, resolution=16):
        super().__init__()
        from lit_align.policies.sdxl import StableDiffusionXL

        self.policy, self.calls, self.batches = StableDiffusionXL("tiny", resolution=resolution), Counter(), {}
        for name in ("encode", "condition"):
            setattr(self.policy, name, self.counted(name, getattr(self.policy, name)))

    def counted(self, name, function):
        def call(rows, *columns):
            self.calls[name] += len(rows)
            return function(rows, *columns)

        return call

    def training_step(self, batch, batch_idx):
        self.batches["train"] = batch
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.batches["val"] = batch
