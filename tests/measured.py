"""The memory of a real training step, by torch's profiler."""

import gc
from pathlib import Path

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile


def alive() -> int:
    """Bytes of all tensors that exist."""
    tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.device.type == "cpu"]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


class PeakMemory(L.Callback):
    """Writes to `<run>/peak` the most bytes that live tensors had during the second batch, by the allocator's own events."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            gc.collect()
            self.before = alive()
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profiler.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.profiler.stop()
            events = [e for e in self.profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
            live = peak = 0
            for event in sorted(events, key=lambda e: e.start_ns()):
                live += event.nbytes()
                peak = max(peak, live)
            Path(trainer.default_root_dir, "peak").write_text(str(self.before + peak))
            trainer.should_stop = True
