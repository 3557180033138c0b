"""Makes preference pairs from lists of samples, in Pick-a-Pic's schema.

`python -m lit_align.shapes.make.pairs --lists checkpoints/shapes-sd/lists/train.parquet --out
checkpoints/shapes-sd/pairs/train.parquet`
"""

import argparse
import os

import torch

from lit_align.data.pick_a_pic import row
from lit_align.data.tables import read_table
from lit_align.shapes.annotators import Annotator


def make_pairs(lists, annotators: list[Annotator], model: str, seed: int, keep_ties: bool = False, flip: float = 0.0):
    """Yields Pick-a-Pic rows. Each list of samples is sorted by an annotator's utility and paired from both ends: best
    with worst, second best with second worst.

    The annotators take the lists in turn, and each labels the pairs of its lists. Then a fraction `flip` of the labels
    is inverted. Ties are left out unless `keep_ties`.
    """
    number, random = 0, torch.Generator().manual_seed(seed)
    for i, one in enumerate(lists):
        annotator = annotators[i % len(annotators)]
        k = len(one["images"])
        utility = annotator.utility([{name: one[name][j] for name in annotator.weights} for j in range(k)])
        order = utility.argsort(descending=True, stable=True).tolist()
        for best, worst in zip(order[: k // 2], reversed(order)):
            swap, turned = torch.rand(2, generator=random).tolist()
            a, b = (best, worst) if swap < 0.5 else (worst, best)
            label = annotator.prefer(utility[a : a + 1], utility[b : b + 1]).item()
            label = 1 - label if turned < flip else label
            if label != 0.5 or keep_ties:
                yield row(one["prompt"], one["images"][a], one["images"][b], label, model, number, i % len(annotators))
                number += 1


def main(args: list[str] | None = None) -> None:
    from datasets import Dataset

    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.pairs", description=__doc__)
    parser.add_argument("--lists", required=True, help="file that lit_align.shapes.make.lists wrote")
    parser.add_argument("--out", required=True, help="parquet file to write")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the annotators' choices; 0: no noise")
    parser.add_argument("--flip", type=float, default=0.0, help="fraction of labels to invert")
    parser.add_argument("--weights", nargs="+", default=["correct=1"], help="for each annotator: quality=weight[,...]")
    parser.add_argument("--keep_ties", action="store_true", help="keep pairs without a preference (label 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)
    annotators = [
        Annotator({q: float(w) for q, w in (term.split("=") for term in text.split(","))}, args.temperature, seed=i)
        for i, text in enumerate(args.weights)
    ]
    model = os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(args.lists))))
    dataset = Dataset.from_list(
        list(make_pairs(read_table(args.lists), annotators, model, args.seed, args.keep_ties, args.flip))
    )
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    dataset.to_parquet(args.out)
    print(f"{len(dataset)} pairs in {args.out}")


if __name__ == "__main__":
    main()
