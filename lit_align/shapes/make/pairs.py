"""Makes preference pairs from lists of samples, in Pick-a-Pic's schema.

`python -m lit_align.shapes.make.pairs --lists checkpoints/shapes-sd/lists/train.parquet --out
checkpoints/shapes-sd/pairs/train.parquet`
"""

import argparse
import hashlib
import os
from datetime import UTC, datetime

import torch

from lit_align.data.tables import read_table
from lit_align.shapes.annotators import Annotator


def row(caption: str, image_0: bytes, image_1: bytes, label_0: float, model: str, number: int, user: int) -> dict:
    """One row of Pick-a-Pic v2 (fields and types of the published card)."""
    uid_0, uid_1 = (hashlib.sha256(image).hexdigest()[:32] for image in (image_0, image_1))
    best = {1.0: uid_0, 0.0: uid_1}.get(label_0, "tie")
    return {
        "are_different": image_0 != image_1,
        "best_image_uid": best,
        "caption": caption,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None),
        "has_label": True,
        "image_0_uid": uid_0,
        "image_0_url": "",
        "image_1_uid": uid_1,
        "image_1_url": "",
        "jpg_0": image_0,
        "jpg_1": image_1,
        "label_0": label_0,
        "label_1": 1 - label_0,
        "model_0": model,
        "model_1": model,
        "ranking_id": number,
        "user_id": user,
        "num_example_per_prompt": 1,
    }


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
