"""Normalises a trained ShapesReward to the base model's samples, and prints how well it agrees with the exact judge.

`python -m lit_align.shapes.make.calibrate --reward checkpoints/shapes/train_reward/reward/reward.safetensors --out
checkpoints/shapes-reward/reward.safetensors`
"""

import argparse
import os

import torch
from torch import Tensor

from lit_align.shapes.comparisons import Comparisons
from lit_align.shapes.reward import ShapesReward
from lit_align.shapes.scenes import parse, satisfies


def agreement(score: Tensor, right: Tensor, group: Tensor) -> dict[str, float]:
    """How well a score (N,) agrees with the exact judge's verdicts, right (N,) bool.

    `accuracy`: the share of pairs of a right and a wrong image of one group, group (N,), in which the right image
    scores higher, a tie counted half; `pairs`: their number; `auc`: the same share over all groups; `pearson` and
    `spearman`: correlations of score and verdict.
    """
    from scipy.stats import pearsonr, spearmanr

    more = (score[:, None] > score).float() + 0.5 * (score[:, None] == score).float()
    pair = right[:, None] & ~right
    same = pair & (group[:, None] == group)
    return {
        "pairs": int(same.sum()),
        "accuracy": more[same].mean().item(),
        "auc": more[pair].mean().item(),
        "pearson": float(pearsonr(score, right.float()).statistic),
        "spearman": float(spearmanr(score, right).statistic),
    }


def scores(reward: ShapesReward, data: Comparisons) -> Tensor:
    """The reward (N,) of all samples that `data` has read."""
    parts = zip(data.samples.split(250), (data.prompt_of[i : i + 250] for i in range(0, len(data.samples), 250)))
    with torch.no_grad():
        return torch.cat([reward(images.float() / 255, prompts) for images, prompts in parts])


def main(args: list[str] | None = None) -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.calibrate", description=__doc__)
    parser.add_argument("--reward", required=True, help="file that BradleyTerry wrote")
    parser.add_argument("--out", required=True, help="file to write, float16")
    parser.add_argument("--lists", default="checkpoints/shapes-sd/lists/train.parquet", help="the base model's samples")
    parser.add_argument("--held_out", type=int, default=200, help="number of held-out prompts, as in training")
    args = parser.parse_args(args)
    reward, data = ShapesReward(args.reward).eval(), Comparisons(args.lists, held_out=args.held_out)
    data.read()
    half = {k: v.half() for k, v in reward.state_dict().items()} | {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)}
    reward.load_state_dict(half)
    score = scores(reward, data)
    half |= {"mean": score.mean(), "std": score.std(correction=0)}
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    save_file(half, args.out)
    right = torch.tensor([satisfies(scene, parse(text)) for scene, text in zip(data.scenes, data.prompt_of)])
    group = torch.arange(len(right)) // data.k
    for name, rows in (("training prompts", slice(data.seen)), ("held-out prompts", slice(data.seen, None))):
        found = agreement(score[rows], right[rows], group[rows])
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v} {k}" for k, v in found.items()))
    print(f"raw mean {score.mean():.3f}, std {score.std():.3f}; {os.path.getsize(args.out)} bytes in {args.out}")


if __name__ == "__main__":
    main()
