"""Gives a trained ShapesReward its unit, the base model's samples, and says how far it can be trusted.

`python -m lit_align.shapes.calibrate --reward checkpoints/shapes/base_reward/reward/reward.safetensors --out
checkpoints/shapes-reward/reward.safetensors`
"""

import argparse
import os

import numpy as np
import torch
from torch import Tensor

from lit_align.shapes.comparisons import Comparisons
from lit_align.shapes.reward import ShapesReward
from lit_align.shapes.scenes import parse, satisfies


def ranks(x: Tensor) -> Tensor:
    """The rank of each entry of x (N,), from 1; equal ones share the mean of theirs."""
    return (x[:, None] > x).float().sum(1) + 0.5 * (x[:, None] == x).float().sum(1) + 0.5


def agreement(score: Tensor, right: Tensor, group: Tensor) -> dict[str, float]:
    """How a score (N,) agrees with the exact judge's verdicts (N,) bool: `accuracy`, the share of pairs of one group
    (N,), a right and a wrong one, in which the right one scores more; `auc`, the same over all pairs; Pearson's and
    Spearman's correlations."""
    more = (score[:, None] > score).float() + 0.5 * (score[:, None] == score).float()
    pair = right[:, None] & ~right
    same = pair & (group[:, None] == group)
    correlate = lambda a, b: np.corrcoef(a.numpy(), b.numpy())[0, 1].item()
    return {
        "pairs": int(same.sum()),
        "accuracy": more[same].mean().item(),
        "auc": more[pair].mean().item(),
        "pearson": correlate(score, right.float()),
        "spearman": correlate(ranks(score), ranks(right.float())),
    }


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reward", required=True, help="what BradleyTerry left")
    parser.add_argument("--out", required=True, help="file to write, float16")
    parser.add_argument("--lists", default="checkpoints/shapes-sd/lists/train.parquet", help="the base model's samples")
    parser.add_argument("--held_out", type=int, default=200, help="as in training")
    args = parser.parse_args()
    reward, data = ShapesReward(args.reward).eval(), Comparisons(args.lists, held_out=args.held_out)
    data.read()
    half = {k: v.half() for k, v in reward.state_dict().items()} | {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)}
    reward.load_state_dict(half)
    with torch.no_grad():
        parts = zip(data.samples.split(250), (data.prompt_of[i : i + 250] for i in range(0, len(data.samples), 250)))
        score = torch.cat([reward(images.float() / 255, prompts) for images, prompts in parts])
    half |= {"mean": score.mean(), "std": score.std(correction=0)}
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    save_file(half, args.out)
    right = torch.tensor([satisfies(scene, parse(text)) for scene, text in zip(data.scenes, data.prompt_of)])
    group = torch.arange(len(right)) // data.k
    for name, rows in (("seen", slice(data.seen)), ("held out", slice(data.seen, None))):
        found = agreement(score[rows], right[rows], group[rows])
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v} {k}" for k, v in found.items()))
    print(f"raw mean {score.mean():.3f}, std {score.std():.3f}; {os.path.getsize(args.out)} bytes in {args.out}")


if __name__ == "__main__":
    main()
