"""Lightning callbacks for alignment. They know Lightning and torch, and modules by the names they log and by what their
steps return: `image` (B, 3, H, W) in [0, 1], `prompt`, `index`, `scores`, and from test `reference_image` and
`reference_scores`."""

from lit_align.callbacks.comparison import Comparison
from lit_align.callbacks.cpu_time import CPUTime
from lit_align.callbacks.ema import EMA
from lit_align.callbacks.image_grid import ImageGrid
from lit_align.callbacks.interrupt import SaveOnInterrupt
from lit_align.callbacks.lora_scaling import LoRAScaling
from lit_align.callbacks.metrics import Throughput
from lit_align.callbacks.progress import Progress
from lit_align.callbacks.reward_overoptimization import RewardOveroptimizationStopping
from lit_align.callbacks.samples import SampleWriter
from lit_align.callbacks.summary import Summary

__all__ = [
    "CPUTime",
    "EMA",
    "Comparison",
    "ImageGrid",
    "LoRAScaling",
    "Progress",
    "RewardOveroptimizationStopping",
    "SampleWriter",
    "SaveOnInterrupt",
    "Summary",
    "Throughput",
]
