"""Lightning callbacks for alignment. They know Lightning and torch, and modules by the names they log and by what their
steps return: `image` (B, 3, H, W) in [0, 1], `prompt`, `index`, `scores`, and from test `reference_image` and
`reference_scores`."""

from callbacks.comparison import Comparison
from callbacks.ema import EMA
from callbacks.image_grid import ImageGrid
from callbacks.lora_scaling import LoRAScaling
from callbacks.metrics import Throughput
from callbacks.reward_overoptimization import RewardOveroptimizationStopping
from callbacks.samples import SampleWriter

__all__ = [
    "EMA",
    "Comparison",
    "ImageGrid",
    "LoRAScaling",
    "RewardOveroptimizationStopping",
    "SampleWriter",
    "Throughput",
]
