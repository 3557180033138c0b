"""Makes SafetyDPO's preference pairs (arXiv 2412.10493) on Shapes, and prompts to test on.

`python -m lit_align.shapes.make.safety --policy checkpoints/shapes-sd --out checkpoints/shapes-sd/safety --prompts
configs/shapes/prompts`
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from itertools import islice

import torch

from lit_align.shapes.judge import NEAR_TINT, judge, see
from lit_align.shapes.make.lists import jpeg, pixels
from lit_align.shapes.make.pairs import row
from lit_align.shapes.safety import ShapesSafety, forbidden_words, harmless
from lit_align.shapes.scenes import COLORS, SHAPES, SKILLS, Caption, Spec, is_held_out, random_caption


def safe_versions(caption: Caption, category: str, forbidden: list[str]) -> list[Caption]:
    """The caption with the category's colour or shape replaced: one version for each word of that kind which is
    allowed and not yet in the caption."""
    kind = tuple(COLORS) if category in COLORS else SHAPES
    allowed = [word for word in kind if word not in forbidden and not forbidden_words(caption, [word])]
    swap = lambda new: tuple(Spec(*(new if word == category else word for word in spec)) for spec in caption.objects)
    return [caption._replace(objects=swap(word)) for word in allowed]


def captions(category: str | None, forbidden: list[str], held_out: bool, rng: random.Random) -> Iterator[Caption]:
    """Endless captions whose only forbidden word is the category (None: captions without a forbidden word)."""
    while True:
        caption = random_caption(rng.choice(SKILLS), rng)
        if forbidden_words(caption, forbidden) == {category} - {None} and is_held_out(str(caption)) == held_out:
            yield caption


def safety_prompts(n: int, category: str | None, forbidden: list[str], seed: int = 0) -> list[dict]:
    """n different held-out prompts as rows {"prompt", "skill"}; the skill is the category, or "safe" for None."""
    found, source = {}, captions(category, forbidden, True, random.Random(f"safety-{category}-{seed}"))
    for caption in islice(source, 100 * n):
        found[str(caption)] = category or "safe"
        if len(found) == n:
            return [{"prompt": text, "skill": skill} for text, skill in found.items()]
    raise ValueError(f"the grammar has fewer than {n} held-out captions of {category or 'safe'}.")


def caption_pairs(n: int, category: str, forbidden: list[str], source: Iterator[Caption], rng: random.Random):
    """n pairs of an unsafe caption and one of its safe versions, neither of them held out."""
    both = []
    while len(both) < n:
        unsafe = next(source)
        if others := [c for c in safe_versions(unsafe, category, forbidden) if not is_held_out(str(c))]:
            both.append((unsafe, rng.choice(others)))
    return both


def safety_pairs(
    policy, sampler, category: str, forbidden: list[str], n: int, model: str, seed: int = 0, keep: bool = True
):
    """Yields n pairs as Pick-a-Pic rows. The caption is unsafe; the loser is its image; the winner is the image of a
    safe version of the caption from the same noise.

    A pair is skipped if its loser is harmless or its winner is not. No caption, safe or unsafe, is held out. With
    `keep`, a pair whose winner shows exactly what the safe caption says is yielded a second time with the safe
    caption, so that safe prompts keep their images (ours, not the paper's).
    """
    rng, number, drawn, batch = random.Random(f"pairs-{category}-{seed}"), 0, 0, 16
    source = captions(category, forbidden, False, rng)
    while number < n:
        both = caption_pairs(batch, category, forbidden, source, rng)
        texts = [str(caption) for side in zip(*both) for caption in side]  # the unsafe ones first
        seeds = [seed * 1_000_003 + drawn + i for i in range(batch)]
        drawn += batch
        with torch.no_grad():
            files = [jpeg(image) for image in policy.decode(sampler(policy, texts, seeds=seeds * 2).x)]
        images = pixels(files)
        scenes, right = see(images, NEAR_TINT), judge(images[batch:], texts[batch:]).tolist()
        for i, (unsafe, safe) in enumerate(both):
            if number == n or harmless(scenes[i], forbidden) or not harmless(scenes[i + batch], forbidden):
                continue
            label = float(rng.random() < 0.5)
            win, lose = files[i + batch], files[i]
            cells = (*((win, lose) if label else (lose, win)), label, model, number, 0)
            yield row(str(unsafe), *cells)
            if keep and right[i]:
                yield row(str(safe), *cells)
            number += 1


def write_prompts(folder: str, forbidden: list[str], seed: int, n: int = 80) -> None:
    """Writes n prompts of each category and as many safe ones: a fifth to safety_val.jsonl, the rest to
    safety_test.jsonl."""
    drawn = [safety_prompts(n, category, forbidden, seed) for category in forbidden]
    drawn.append(safety_prompts(n * len(forbidden), None, forbidden, seed))
    parts = {
        "val": [row for rows in drawn for row in rows[: len(rows) // 5]],
        "test": [row for rows in drawn for row in rows[len(rows) // 5 :]],
    }
    for name, rows in parts.items():
        random.Random(seed).shuffle(rows)
        with open(os.path.join(folder, f"safety_{name}.jsonl"), "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def main(args: list[str] | None = None) -> None:
    from datasets import Dataset

    from lit_align.diffusion.sampler import Sampler
    from lit_align.policies.stable_diffusion import StableDiffusion

    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.safety", description=__doc__)
    parser.add_argument("--policy", required=True, help="pipeline folder to sample from")
    parser.add_argument("--forbidden", nargs="+", default=["red", "cross"], help="colours and shapes, a category each")
    parser.add_argument("--out", required=True, help="folder for train-<category>.parquet")
    parser.add_argument("--prompts", help="folder for safety_val.jsonl and safety_test.jsonl")
    parser.add_argument("--pairs", type=int, default=220, help="number of pairs for each category")
    parser.add_argument(
        "--keep", action=argparse.BooleanOptionalAction, default=True, help="add rows with safe captions"
    )
    parser.add_argument("--steps", type=int, default=15, help="sampling steps")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)
    try:
        ShapesSafety(args.forbidden)
    except ValueError as error:
        parser.error(str(error))
    policy, sampler = StableDiffusion(args.policy), Sampler(args.steps, args.guidance_scale)
    model = os.path.basename(os.path.abspath(args.policy))
    os.makedirs(args.out, exist_ok=True)
    for category in args.forbidden:
        path = os.path.join(args.out, f"train-{category}.parquet")
        rows = list(safety_pairs(policy, sampler, category, args.forbidden, args.pairs, model, args.seed, args.keep))
        Dataset.from_list(rows).to_parquet(path)
        print(f"{len(rows)} rows in {path}")
    if args.prompts:
        write_prompts(args.prompts, args.forbidden, args.seed)


if __name__ == "__main__":
    main()
