"""Speed and memory of training."""

import resource
import time

import lightning as L
import torch


class Throughput(L.Callback):
    """Logs `perf/images_per_s` (prompts or pairs of all devices, validation left out), `perf/step_ms`, `perf/data_ms`
    (waiting for the loader), and `perf/peak_memory_mb` (the GPU's allocated peak, or the process's resident peak on a
    CPU)."""

    def __init__(self):
        self.end_of_last = self.start = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        now = time.perf_counter()
        if self.end_of_last is not None:
            whole, count = now - self.end_of_last, len(batch["prompt"]) * trainer.world_size
            module.log_dict(
                {
                    "perf/images_per_s": count / whole,
                    "perf/step_ms": (now - self.start) * 1e3,
                    "perf/data_ms": (self.start - self.end_of_last) * 1e3,
                    "perf/peak_memory_mb": self.peak(module.device),
                }
            )
        self.end_of_last = now

    def on_validation_start(self, trainer, module) -> None:
        self.end_of_last = None

    on_train_start = on_validation_start

    @staticmethod
    def peak(device: torch.device) -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
