"""How often rewards agree with people: a table of rewards and datasets, as the survey's Table 3.

`python -m lit_align accuracy --rewards '[PickScore, HPSv21]' --data '[{class_path: HPDv2, init_args: {split: test}}]'`
"""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_align.data.datamodule import AlignData
from lit_align.data.feedback import total
from lit_align.data.images import to_upright_rgb
from lit_align.data.judged_lists import JudgedLists
from lit_align.data.judged_pairs import JudgedPairs
from lit_align.metrics.accuracy import PairwiseAccuracy
from lit_align.rewards.reward import Reward, components

FIGURES = ("strict", "half", "per_prompt", "not_inverted", "with_ties")


@torch.no_grad()
def accuracy(
    rewards: list[Reward],
    data: list[AlignData],
    out: str = "accuracy",
    limit: int | None = None,
    device: str = "auto",
    smoke: bool = False,
) -> None:
    """Measures how often rewards order the images of a prompt as people did, for each dataset.

    Writes accuracy.json and accuracy.md: shares of pairs by several rules of ties, see PairwiseAccuracy. Papers mix
    these rules: compare figures of one column alone.

    Args:
        rewards: what is measured, one number per image each.
        data: datasets of judged images, each with its `split`: HPDv2, ImageRewardDB, PickAPic, HPDv3 ...
        out: the folder to write to.
        limit: take the first prompts, or pairs, of each dataset alone.
        device: where rewards run; auto: a GPU if there is one.
        smoke: tiny random weights and a few Shapes rows in the datasets' schemas, to try a command out.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    rewards = [reward.to(device).eval().requires_grad_(False) for reward in rewards]
    names = [reward.name for reward in rewards]
    if len(set(names)) < len(names) or not names or not data:
        raise ValueError(f"the rewards are called {names}: give one or more of different names, and --data.")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for dataset in data:
        metrics = [PairwiseAccuracy() for _ in rewards]
        for row in tqdm(islice(judged(dataset), limit), desc=type(dataset).__name__, unit="prompt"):
            for reward, metric in zip(rewards, metrics):
                metric.update(scores(reward, row, device), torch.tensor(row["human"], dtype=torch.float64))
        label = f"{type(dataset).__name__} {dataset.splits['train']}"
        numbers = [{k.split("/")[1]: float(v) for k, v in metric.compute().items()} for metric in metrics]
        found[label] = dict(zip(names, numbers))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accuracy.json").write_text(json.dumps(found, indent=1))
    (folder / "accuracy.md").write_text(text := table(found))
    print(f"{text}\naccuracy.json and accuracy.md are in {out}")


def judged(data: AlignData) -> Iterator[dict]:
    """Prompts with their judged images: {"prompt", "images": K cells, "human": K numbers, higher is better, nan without
    a judgement, "columns", "where"}."""
    where = lambda row: f"row {row['index']} of {row['file']}"
    if isinstance(data, JudgedLists):
        for one in data.records("train"):
            human = total(one["scores"], data.dimensions)
            yield {k: one[k] for k in ("prompt", "images", "columns")} | {"human": human, "where": where(one)}
    elif isinstance(data, JudgedPairs):
        rows = data.compared("train")
        for row in rows:
            if row["keep"] and not math.isnan(row["label"]):
                columns = {k.removeprefix("columns."): v for k, v in row.items() if k.startswith("columns.")}
                one = {"prompt": row["prompt"], "images": [row["image_0"], row["image_1"]], "columns": columns}
                yield one | {"human": [row["label"], 1 - row["label"]], "where": where(row)}
    else:
        raise ValueError(f"{type(data).__name__} has no judged images: take HPDv2, PickAPic or their like.")


def scores(reward: Reward, row: dict, device: str) -> Tensor:
    """(K,) of the images of a prompt, each at its own size."""
    found = []
    for cell in row["images"]:
        pixels = torch.from_numpy(np.asarray(to_upright_rgb(cell, row["where"])).copy()).permute(2, 0, 1).to(device)
        one = {"prompt": [row["prompt"]], "columns": {name: [value] for name, value in row["columns"].items()}}
        found.append(reward.combine(components(reward, pixels[None] / 255, one)))
    if found[0].ndim > 1:
        raise ValueError(f"the reward {reward.name} gives several numbers: name a WeightedSum or one of them.")
    return torch.cat(found)


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """One table for each dataset: rewards by figures."""
    text = ""
    for dataset, rows in found.items():
        pairs = next(iter(rows.values()))
        text += f"## {dataset}: {pairs['pairs']:.0f} pairs, {pairs['ties']:.0f} of them ties\n\n"
        text += f"| reward | {' | '.join(FIGURES)} |\n" + "| --- " * (len(FIGURES) + 1) + "|\n"
        for name, numbers in rows.items():
            text += f"| {name} | {' | '.join(f'{numbers[figure]:.3f}' for figure in FIGURES)} |\n"
        text += "\n"
    return text
