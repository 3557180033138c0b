"""Makes preference pairs from a policy's own samples, in Pick-a-Pic's schema.

`python -m lit_align.shapes.pairs --policy checkpoints/shapes-sd --out checkpoints/shapes-sd/pairs/train.parquet`
"""

import argparse
import hashlib
import io
import os
from datetime import datetime, timezone

import torch
from tqdm import tqdm

from lit_align.shapes.annotators import Annotator
from lit_align.shapes.scenes import prompts

PER_PROMPT = 4  # samples of each prompt: the best is paired with the worst, the second with the third


def jpeg(image: torch.Tensor) -> bytes:
    """An image (3, H, W) in [0, 1] as JPEG bytes, quality 95 without chroma subsampling."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def row(caption: str, image_0: bytes, image_1: bytes, label_0: float, model: str, number: int, user: int) -> dict:
    """One row of Pick-a-Pic v2 (fields and types of the published card)."""
    uid_0, uid_1 = (hashlib.sha256(image).hexdigest()[:32] for image in (image_0, image_1))
    best = {1.0: uid_0, 0.0: uid_1}.get(label_0, "tie")
    return {
        "are_different": image_0 != image_1,
        "best_image_uid": best,
        "caption": caption,
        "created_at": datetime(2026, 1, 1, tzinfo=timezone.utc).replace(tzinfo=None),
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


def sample_pairs(policy, sampler, rows: list[dict], annotators: list[Annotator], model: str, seed: int, keep_ties: bool):
    """Yields Pick-a-Pic rows: PER_PROMPT samples of each prompt, ordered by an annotator's utility, matched from both ends.

    Prompts are shared among the annotators in turn; each pair is labelled by the prompt's annotator.
    """
    number, shuffle = 0, torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(rows), 8), desc="pairs", unit="prompts", unit_scale=8):
        texts = [r["prompt"] for r in rows[start : start + 8] for _ in range(PER_PROMPT)]
        first = seed * 1_000_003 + start * PER_PROMPT
        state = sampler(policy, texts, seeds=list(range(first, first + len(texts))))
        with torch.no_grad():
            images = policy.decode(state.x)
        for i in range(0, len(texts), PER_PROMPT):
            who = (start + i // PER_PROMPT) % len(annotators)
            group = images[i : i + PER_PROMPT]
            utility = annotators[who].utility(group, texts[i : i + PER_PROMPT])
            order = utility.argsort(descending=True).tolist()
            for best, worst in zip(order[: PER_PROMPT // 2], reversed(order)):
                a, b = (best, worst) if torch.rand((), generator=shuffle) < 0.5 else (worst, best)
                label = annotators[who].prefer(utility[a : a + 1], utility[b : b + 1]).item()
                if label != 0.5 or keep_ties:
                    yield row(texts[i], jpeg(group[a]), jpeg(group[b]), label, model, number, who)
                    number += 1


def main() -> None:
    from datasets import Dataset

    from lit_align.diffusion.sampler import Sampler
    from lit_align.policies.stable_diffusion import StableDiffusion
    from lit_align.policies.stable_diffusion3 import StableDiffusion3

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True, help="pipeline folder to sample from")
    parser.add_argument("--flow", action="store_true", help="the folder holds an SD3-style pipeline")
    parser.add_argument("--out", required=True, help="parquet file to write")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--temperature", type=float, default=0.0, help="of the annotators' Bradley-Terry noise")
    parser.add_argument("--weights", nargs="+", default=["correct=1"], help="one annotator each: quality=weight[,...]")
    parser.add_argument("--keep_ties", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    annotators = [
        Annotator({q: float(w) for q, w in (term.split("=") for term in text.split(","))}, args.temperature, seed=i)
        for i, text in enumerate(args.weights)
    ]
    policy = StableDiffusion3(args.policy, max_sequence_length=1) if args.flow else StableDiffusion(args.policy)
    sampler = Sampler(args.steps, args.guidance_scale)
    rows = prompts(args.prompts, held_out=False, seed=args.seed)
    pairs = sample_pairs(policy, sampler, rows, annotators, os.path.basename(args.policy), args.seed, args.keep_ties)
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    dataset = Dataset.from_list(list(pairs))
    dataset.to_parquet(args.out)
    print(f"{len(dataset)} pairs from {args.prompts} prompts in {args.out}")


if __name__ == "__main__":
    main()
