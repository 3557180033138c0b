"""AI feedback: samples images, compares them by a reward, and writes the pairs in Pick-a-Pic's schema.

`python -m lit_align label --prompts prompts.jsonl --model StableDiffusion --model.pretrained checkpoints/shapes-sd
--reward ShapesJudge --out labelled`, then `python -m lit_align fit --config shapes/dpo --data.path labelled`.

With `--against` the pairs are of one model and another, and `--margin` leaves out those that the reward hardly tells
apart (data-centric preference, section 6 of the survey arXiv 2409.07253).
"""

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from lit_align.data.batch import batch_of
from lit_align.data.feedback import Pair, pairs
from lit_align.data.pick_a_pic import row, write_rows
from lit_align.data.tables import read_prompts
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import select_rows
from lit_align.policies.policy import Policy
from lit_align.rewards.multi_reward import WeightedSum
from lit_align.rewards.reward import Reward, components

SHARD = 64  # prompts in a file, which is written at once


def encoded(image: Tensor) -> bytes:
    """An image (3, H, W) in [0, 1] as PNG."""
    from PIL import Image

    pixels, buffer = (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy(), io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def draw(
    policy: Policy, sampler: Sampler, reward: Reward, rows: dict, seeds: list[int], size: int
) -> tuple[list[bytes], Tensor, Tensor]:
    """Samples an image for each of N rows {"prompt", "columns"}, `size` at a time: the images, their scores (N,), and
    the parts of a reward that has several, (N, R)."""
    images, parts = [], []
    for part in torch.arange(len(seeds)).split(size):
        mine = select_rows(rows, part.tolist())
        state = sampler(policy, mine["prompt"], columns=mine["columns"], seeds=[seeds[i] for i in part])
        image = policy.decode(state.x).float().clamp(0, 1)
        parts.append(components(reward, image, mine).cpu())
        images += [encoded(one) for one in image]
    parts = torch.cat(parts)
    scores = reward.combine(parts)
    if scores.ndim > 1:
        raise ValueError(
            f"the reward {reward.name} gives {scores.shape[1]} numbers per image and one is due: put the rewards into "
            "a WeightedSum with normalise: false."
        )
    if not scores.isfinite().all():
        bad = rows["prompt"][int(scores.isfinite().logical_not().nonzero()[0])]
        raise ValueError(f"the reward {reward.name} is not finite for {bad!r}.")
    return images, scores, parts.view(len(parts), -1) if parts.ndim > 1 else parts[:, None]


def chosen_pairs(scores: list[float], n: int, margin: float, compare: str) -> list[Pair]:
    """Which images of a prompt are compared: those of one model, `compare` says which; or, where there are 2n, each of
    the first model's with that of the second model from the same noise."""
    found = pairs(scores, margin)
    if len(scores) > n:
        return [pair for pair in found if abs(pair.win - pair.lose) == n]
    if compare == "all":
        return found
    ends = {scores.index(max(scores)), len(scores) - 1 - scores[::-1].index(min(scores))}
    return [pair for pair in found if {pair.win, pair.lose} == ends]


def same_settings(folder: Path, settings: dict) -> None:
    """Writes the settings beside the data; ValueError if what is there was made with others."""
    file = folder / "label.json"
    if file.exists() and (found := json.loads(file.read_text())) != settings:
        other = next(name for name in settings if found.get(name) != settings[name])
        raise ValueError(
            f"{folder} was begun with {other} {found.get(other)}, now it is {settings[other]}: choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1))


@torch.no_grad()
def label(
    prompts: str,
    model: Policy,
    reward: Reward,
    out: str,
    against: Policy | None = None,
    sampler: Sampler | None = None,
    n: int = 2,
    compare: Literal["best_worst", "all"] = "best_worst",
    margin: float = 0.0,
    ties: Literal["keep", "drop"] = "keep",
    column: str = "prompt",
    batch_size: int = 8,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Samples images, compares them by a reward and writes pairs that `--data PickAPic` reads.

    The folder holds parquet files in Pick-a-Pic's schema, with each image's score as `score_0` and `score_1` (of a
    weighted sum also its parts, `score_<name>_0` and `score_<name>_1`). The same command continues after an
    interruption. Raises ValueError if the folder was begun with other settings.

    Args:
        prompts: a file of prompts, as `--data.val_prompts` takes them; its further columns reach the reward.
        model: the policy that is sampled.
        reward: what compares, one number per image.
        out: the folder to write to.
        against: a second policy: each of its images is compared with the first policy's from the same noise.
        sampler: how both are sampled (default: 50 DDIM steps, guidance 7.5).
        n: images of a prompt and policy.
        compare: of the n images of one policy the best with the worst, or all pairs.
        margin: images whose scores differ by this or less are tied; PickAPic leaves ties out by default.
        ties: write them, with label 0.5, or leave them out.
        column: of the prompts in their file.
        batch_size: images sampled at once.
        seed: of the first image; the others count on.
        device: where the models run; auto: a GPU if there is one.
    """
    from pyarrow import parquet

    if n < (1 if against else 2):
        raise ValueError(f"n is {n}, and two images of a prompt are compared: set --n 2, or give --against.")
    if isinstance(reward, WeightedSum) and reward.normalise:
        raise ValueError(
            "this weighted sum depends on all scores so far, which an interrupted run loses: set "
            "--reward.normalise false."
        )
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    policies = [policy.to(device) for policy in (model, against) if policy is not None]
    reward, sampler = reward.to(device).eval(), sampler or Sampler()
    table = read_prompts(prompts, column)
    settings = {"prompts": hashlib.sha256("\n".join(table["prompt"][:]).encode()).hexdigest()[:16]}
    settings |= {"models": [policy.fingerprint for policy in policies], "reward": type(reward).__name__}
    settings |= {"steps": sampler.steps, "guidance_scale": sampler.guidance_scale, "steered": sampler.is_steered}
    settings |= {"n": n, "compare": compare, "margin": margin, "ties": ties, "seed": seed}
    folder, starts = Path(out), range(0, len(table), SHARD)
    same_settings(folder, settings)

    def rows_of(numbers: range) -> list[dict]:
        """The pairs of some prompts."""
        cells = [{k: v for k, v in table[i].items() if k != "index"} for i in numbers]
        rows, found = batch_of([one for one in cells for _ in range(n)]), []
        seeds = [seed + n * i + k for i in numbers for k in range(n)]
        drawn = [draw(policy, sampler, reward, rows, seeds, batch_size) for policy in policies]
        for i, number in enumerate(numbers):
            mine = slice(i * n, i * n + n)
            images = [image for all_images, _, _ in drawn for image in all_images[mine]]  # one policy after the other
            scores = torch.cat([scores[mine] for _, scores, _ in drawn])
            parts = torch.cat([parts[mine] for _, _, parts in drawn])
            columns = {"score": scores} | {f"score_{name}": part for name, part in zip(reward.names, parts.T)}
            compared = chosen_pairs(scores.tolist(), n, margin, compare)
            compared = [pair for pair in compared if pair.gap or ties == "keep"]
            for j, pair in enumerate(compared):
                place = number * len(images) ** 2 + j  # the number of the pair, however the run was interrupted
                turned = random.Random(f"{seed} {place}").random() < 0.5
                a, b = (pair.lose, pair.win) if turned else (pair.win, pair.lose)
                label_0 = 0.5 if not pair.gap else float(not turned)
                models = [policies[k // n].fingerprint for k in (a, b)]
                one = row(rows["prompt"][i * n], images[a], images[b], label_0, models[0], place, 0, models[1])
                for name, values in columns.items():
                    one |= {f"{name}_0": values[a].item(), f"{name}_1": values[b].item()}
                found.append(one | {"num_example_per_prompt": len(compared)})
        return found

    for shard, first in enumerate(tqdm(starts, desc="label", unit="file")):
        file = folder / f"train-{shard:05d}-of-{len(starts):05d}.parquet"
        if not file.exists():
            numbers = range(first, min(first + SHARD, len(table)))
            write_rows(rows_of(numbers), ["score", *(f"score_{name}" for name in reward.names)], file)
    files = sorted(folder.glob("train-*.parquet"))
    labels = [x for file in files for x in parquet.read_table(file, columns=["label_0"])["label_0"].to_pylist()]
    if not labels:
        raise ValueError(f"no pair of {len(table)} prompts is left: lower --margin, or set --ties keep.")
    print(f"{len(labels)} pairs of {len(table)} prompts, {labels.count(0.5)} of them ties, are in {out}")
