"""Samples several images for each prompt from a policy and scores them: the raw material of pairs and rankings.

`python -m lit_align.shapes.make.lists --policy checkpoints/shapes-sd --out checkpoints/shapes-sd/lists/train.parquet`
"""

import argparse
import io
import os

import torch
from tqdm import tqdm

from lit_align.data.images import decode
from lit_align.shapes.annotators import qualities
from lit_align.shapes.judge import see
from lit_align.shapes.scenes import SIZE, prompts


def jpeg(image: torch.Tensor) -> bytes:
    """An image (3, H, W) in [0, 1] as JPEG bytes, quality 95 without chroma subsampling."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def pixels(files: list[bytes]) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] of JPEG files."""
    return torch.stack([decode(file, SIZE, "an image of `jpeg`") for file in files])


def sample_lists(policy, sampler, rows: list[dict], k: int, seed: int):
    """Yields one row per prompt: "prompt", "images" (k JPEG files as bytes), and k values of each of `qualities`, which
    the judge reads from these files."""
    for start in tqdm(range(0, len(rows), 8), desc="lists", unit="prompts", unit_scale=8):
        texts = [r["prompt"] for r in rows[start : start + 8] for _ in range(k)]
        first = seed * 1_000_003 + start * k
        state = sampler(policy, texts, seeds=list(range(first, first + len(texts))))
        with torch.no_grad():
            files = [jpeg(image) for image in policy.decode(state.x)]
        found = [qualities(scene, prompt) for scene, prompt in zip(see(pixels(files)), texts, strict=True)]
        for i in range(0, len(texts), k):
            columns = {name: [q[name] for q in found[i : i + k]] for name in found[0]}
            yield {"prompt": texts[i], "images": files[i : i + k], **columns}


def main(args: list[str] | None = None) -> None:
    from datasets import Dataset

    from lit_align.diffusion.sampler import Sampler
    from lit_align.policies.stable_diffusion import StableDiffusion
    from lit_align.policies.stable_diffusion3 import StableDiffusion3

    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.lists", description=__doc__)
    parser.add_argument("--policy", required=True, help="pipeline folder to sample from")
    parser.add_argument("--flow", action="store_true", help="the folder holds an SD3-style pipeline")
    parser.add_argument("--out", required=True, help="parquet file to write")
    parser.add_argument("--prompts", type=int, default=1000, help="number of prompts")
    parser.add_argument("--per_prompt", type=int, default=4, help="images for each prompt")
    parser.add_argument("--steps", type=int, default=15, help="sampling steps")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)
    policy = StableDiffusion3(args.policy, max_sequence_length=1) if args.flow else StableDiffusion(args.policy)
    rows = prompts(args.prompts, held_out=False, seed=args.seed)
    lists = list(sample_lists(policy, Sampler(args.steps, args.guidance_scale), rows, args.per_prompt, args.seed))
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    Dataset.from_list(lists).to_parquet(args.out)
    correct = torch.tensor([row["correct"] for row in lists]).mean()
    print(f"{len(lists)} lists of {args.per_prompt} in {args.out}, {correct:.3f} of the images correct")


if __name__ == "__main__":
    main()
