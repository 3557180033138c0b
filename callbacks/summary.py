"""What a run trains and where its results are, in a few lines."""

import os
from collections.abc import Callable

from lightning.pytorch.callbacks import ModelSummary

RESULTS = {  # what a run folder holds, by name, in the order in which it is told
    "policy": "trained weights, for diffusers",
    "reward": "trained reward",
    "value": "trained value network",
    "checkpoints": "checkpoints; last.ckpt resumes",
    "samples": "pictures of the validations",
    "config.yaml": "the whole configuration",
}


def count(n: int) -> str:
    """A number of parameters, three digits."""
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


class Summary(ModelSummary):
    """Says before training what is trained, on what device and where results go, and after it where they lie.

    Args:
        about: gives further lines for the start.
    """

    def __init__(self, about: Callable[[], list[str]] = list):
        super().__init__()
        self.about = about

    def on_fit_start(self, trainer, module) -> None:
        if not trainer.is_global_zero:
            return
        sizes = {name: (p.numel(), p.requires_grad) for name, p in module.named_parameters()}
        trained = sum(n for n, grad in sizes.values() if grad)
        parts = dict.fromkeys(".".join(name.split(".")[:2]) for name, (_, grad) in sizes.items() if grad)
        frozen = sum(n for n, grad in sizes.values() if not grad)
        devices = f"{trainer.num_devices * trainer.num_nodes} x " if trainer.world_size > 1 else ""
        for line in (
            f"{type(module).__name__} trains {count(trained)} parameters ({', '.join(parts)}), {count(frozen)} frozen",
            *self.about(),
            f"on {devices}{module.device.type}, precision {trainer.precision}",
            f"results in {trainer.default_root_dir}",
        ):
            print(line)

    def on_fit_end(self, trainer, module) -> None:
        root = trainer.default_root_dir
        found = {name: text for name, text in RESULTS.items() if os.path.exists(os.path.join(root, name))}
        if trainer.is_global_zero and found:
            print(f"trained {trainer.global_step} steps; in {root}:")
            for name, text in found.items():
                print(f"  {name:<12} {text}")
