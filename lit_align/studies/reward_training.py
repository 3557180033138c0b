"""Writes docs/reward_training.md: each objective of reward modelling, trained on the choices of simulated annotators.

`python -m lit_align.studies.reward_training --objectives BradleyTerry RaoKupper --seeds 1 2`. Measurements are kept in
docs/reward_training.json, and runs that it holds are not repeated.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import mean
from tempfile import TemporaryDirectory
from typing import NamedTuple

import lightning as L
import torch

from lit_align.algorithms.reward_modeling.bootstrap_ensemble import BootstrapEnsemble
from lit_align.algorithms.reward_modeling.bradley_terry import BradleyTerry
from lit_align.algorithms.reward_modeling.image_rewards import ImageRewards
from lit_align.algorithms.reward_modeling.partitioned_preference import PartitionedPreference
from lit_align.algorithms.reward_modeling.plackett_luce import PlackettLuce
from lit_align.algorithms.reward_modeling.preference_mixture import PreferenceMixture
from lit_align.algorithms.reward_modeling.rao_kupper import RaoKupper
from lit_align.algorithms.reward_modeling.triplet import TripletPreference
from lit_align.paths import ROOT
from lit_align.shapes import WORLD
from lit_align.shapes.annotated import Annotated
from lit_align.shapes.annotators import Annotator
from lit_align.shapes.reward import ShapesReward
from lit_align.studies.runs import alternatives, markdown, read_records, write_records

RECORDS, PAGE = (ROOT / f"docs/reward_training.{end}" for end in ("json", "md"))
STEPS, BATCH, PAIRS = 200, 32, 1000  # optimizer steps, rows of a step, held-out pairs
HEADS = ["objective", "annotator", "learns from", "accuracy, 95 % interval", "limit", "share of the limit", "agreement"]
HEADS += ["seeds"]
TEXT = """# Training rewards

`python -m lit_align fit --config pickscore.yaml` trains a reward as its paper does; `hpsv2`, `image_reward`, `mps`,
`richhf`, `social_reward`, `spm_*` and `lrm_*` are the other recipes. A run writes `<run>/reward` in the format that the
class of the reward loads, so its next use is

```
python -m lit_align fit --config ddpo_sd15.yaml --model.reward PickScore --model.reward.pretrained <run>/reward \
    --model.reward.tokenizer <run>/reward
```

`BradleyTerry` trains any reward that has weights on any pairs, `RaoKupper` on pairs with ties (`--data.ties keep`),
`PlackettLuce` and `PartitionedPreference` on lists (`--data.list_size 4`), `PreferenceMixture` on pairs whose
annotators are known and disagree, and `BootstrapEnsemble` trains several rewards whose disagreement `Ensemble` reads.

## On simulated annotators

Written by `python -m lit_align.studies.reward_training`. Each objective of `lit_align/algorithms/reward_modeling`
trains a small `ShapesReward` (width 32, one layer, random weights) for {steps} steps of {batch} rows on rendered scenes
that annotators of `lit_align/shapes/annotators.py` judge; {pairs} held-out pairs of the same annotators test it.

| column | meaning |
|---|---|
| accuracy | share of held-out pairs, ties left out, whose winner scores higher; its interval is over the pairs |
| limit | the same for the annotator's own utility: the Bayes limit that the noise of the labels sets |
| share of the limit | (accuracy - 1/2) / (limit - 1/2) |
| agreement | share of the pairs of different utility that the reward orders as the utility does, without noise |

{table}
What the runs show beside it:

{notes}
No run loads published weights, and none is long: the figures say that an objective finds what its annotator prefers,
not which objective is best. `ConditionedPreference` (MPS) and `RichFeedback` (RAHF) train networks of their own; their
tests compare them with closed forms, and their recipes run under `smoke`.
"""


class Run(NamedTuple):
    """An objective and what it learns from."""

    method: Callable[..., ImageRewards]
    annotators: dict[str, Annotator]
    data: dict  # arguments of Annotated
    said: tuple[str, str]  # the annotator, and the data, for the table


def noisy(**weights: float) -> Annotator:
    return Annotator(weights, temperature=0.4)


SIMPLE = {"one": noisy(large=1.0)}
BIASED = {"one": noisy(large=1.0, red=0.5)}
TIES = {"one": Annotator({"large": 1.0, "sparse": 0.5}, temperature=0.4, tie=0.3)}
RANKED = {"one": Annotator({"large": 1.0, "sparse": 0.5}, temperature=0.4)}
GROUPS = {f"{name} {i}": noisy(**{name: 1.0}) for i in range(6) for name in ("large", "sparse")}
SIGNS = ("noisy: likes large objects", "noisy and biased: large objects, and red ones half as much")
RUNS = {
    "BradleyTerry": Run(BradleyTerry, SIMPLE, {}, (SIGNS[0], "pairs")),
    "BradleyTerry, biased": Run(BradleyTerry, BIASED, {}, (SIGNS[1], "pairs")),
    "TripletPreference": Run(partial(TripletPreference, margin=1.0), SIMPLE, {}, (SIGNS[0], "pairs")),
    "RaoKupper": Run(
        RaoKupper, TIES, {"ties": "keep"}, ("sees no difference below 0.3: large, and few, objects", "pairs with ties")
    ),
    "PlackettLuce": Run(PlackettLuce, RANKED, {"k": 4}, ("noisy: large, and few, objects", "rankings of 4")),
    "PartitionedPreference": Run(
        PartitionedPreference,
        RANKED,
        {"k": 4, "levels": 2},
        ("noisy: large, and few, objects", "good and bad halves of 4"),
    ),
    "BootstrapEnsemble": Run(BootstrapEnsemble, SIMPLE, {}, (SIGNS[0], "pairs, resampled for 3 rewards")),
    "PreferenceMixture": Run(
        PreferenceMixture,
        GROUPS,
        {},
        ("12 in disagreement: half like large, half few objects", "pairs with annotators"),
    ),
    "BradleyTerry, mixed": Run(BradleyTerry, GROUPS, {}, ("the same 12", "pairs without annotators")),
}


def network() -> ShapesReward:
    return ShapesReward(width=32, depth=1)


def build(run: Run) -> ImageRewards:
    """The method with random weights."""
    given = {"optimizer": partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.01)}
    given["lr_scheduler"] = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=2e-3, total_steps=STEPS, pct_start=0.1)
    if run.method in (BootstrapEnsemble, PreferenceMixture):
        names = ("a", "b", "c") if run.method is BootstrapEnsemble else ("a", "b")
        return run.method(rewards={name: network() for name in names}, **given)
    return run.method(reward=network(), **given)


def train(run: Run, seed: int, steps: int = STEPS) -> ImageRewards:
    L.seed_everything(seed, verbose=False)
    method, data = build(run), Annotated(run.annotators, **run.data, seed=seed, batch_size=BATCH)
    with TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            max_steps=steps,
            limit_val_batches=0,
            gradient_clip_val=1.0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(method, data)
    return method


@torch.no_grad()
def tested(run: Run, method: ImageRewards, seed: int, n: int = PAIRS) -> dict:
    """Scores held-out pairs: accuracy, its limit, and agreement with the utility; what is special to a method."""
    method.reward.eval()
    data = Annotated(run.annotators, ties=run.data.get("ties", "drop"), seed=seed + 1000)
    margins, annotators, p, label = [], [], [], []
    for first in range(0, n, 100):
        batch = data.collate([{"index": 10**9 + first + i} for i in range(min(100, n - first))])
        rows = zip(("win", "lose"), method.win_and_lose(batch))
        win, lose = (score for _, score in rows)
        margins.append(win - lose)
        annotators += batch["columns"]["user_id"]
        p += batch["columns"]["p"]
        label += batch["label"].tolist()
    margin, p, label = torch.cat(margins), torch.tensor(p), torch.tensor(label)
    told = {}
    if isinstance(method, PreferenceMixture):
        group = method.groups(annotators)
        found = {name: int(row.argmax()) for name, row in zip(annotators, group)}
        same = [
            len({found[name] for name in run.annotators if name.split()[0] == kind}) for kind in ("large", "sparse")
        ]
        kinds = {name: int(name.startswith("large")) for name in run.annotators}
        right = mean(found[name] == kind for name, kind in kinds.items())
        told = {"groups": max(right, 1 - right), "one group each": same == [1, 1]}
        margin = (group * margin.sigmoid()).sum(1) - 0.5
    if isinstance(method, BootstrapEnsemble):
        spread, margin = margin.std(1, correction=0) / margin.abs().mean(1).clamp(min=1e-6), margin.mean(1)
        half = spread > spread.median()
    clear = (label != 0.5) & (p != 0.5)
    right = margin > 0
    if isinstance(method, BootstrapEnsemble):
        agree = right == (p > 0.5)
        told = {"agreement where sure": agree[clear & ~half].float().mean().item()}
        told["agreement where unsure"] = agree[clear & half].float().mean().item()
    if isinstance(method, RaoKupper):
        told = {"theta": method.theta.item(), "tie margin": margin[~clear].abs().mean().item()}
        told["other margin"] = margin[clear].abs().mean().item()
    share = lambda x: x[clear].float().mean().item()
    return told | {
        "accuracy": share(right),
        "limit": share(p > 0.5),
        "agreement": share(right == (p > 0.5)),
        "n": int(clear.sum()),
    }


def row(name: str, runs: list[dict]) -> list[str]:
    """The cells of an objective's row, means over its seeds."""
    over = lambda key: mean(r[key] for r in runs)
    accuracy, limit, n = over("accuracy"), over("limit"), sum(r["n"] for r in runs)
    half = 1.96 * (accuracy * (1 - accuracy) / n) ** 0.5
    cells = [f"`{name}`", *RUNS[name].said, f"{accuracy:.3f} [{accuracy - half:.3f}, {accuracy + half:.3f}]"]
    return [
        *cells,
        f"{limit:.3f}",
        f"{(accuracy - 0.5) / (limit - 0.5):.0%}",
        f"{over('agreement'):.3f}",
        str(len(runs)),
    ]


def notes(records: dict) -> str:
    """What is special to an objective, a line each."""
    lines, over = [], lambda name, key: mean(r[key] for r in records[name].values())
    if records.get("PreferenceMixture"):
        name = "PreferenceMixture"
        lines.append(f"`{name}` puts {over(name, 'groups'):.0%} of the 12 annotators into the right group.")
        if records.get("BradleyTerry, mixed"):
            lines[-1] += f" One reward for all of them has the accuracy {over('BradleyTerry, mixed', 'accuracy'):.3f}."
    if records.get("BootstrapEnsemble"):
        name = "BootstrapEnsemble"
        sure, unsure = over(name, "agreement where sure"), over(name, "agreement where unsure")
        lines.append(f"`{name}` agrees with the utility in {sure:.3f} of the half of pairs with the least relative")
        lines[-1] += f" disagreement of its rewards, and in {unsure:.3f} of the other half."
    if records.get("RaoKupper"):
        name = "RaoKupper"
        lines.append(f"`{name}` ends with theta {over(name, 'theta'):.2f}; the margin of ties is")
        lines[-1] += (
            f" {over(name, 'tie margin'):.2f} in the mean, that of other pairs {over(name, 'other margin'):.2f}."
        )
    return "".join(f"- {line}\n" for line in lines)


def write(records: dict) -> None:
    found = {name: list(records[name].values()) for name in RUNS if records.get(name)}
    table = markdown(HEADS, [row(name, runs) for name, runs in found.items()])
    steps = alternatives(r["steps"] for runs in found.values() for r in runs)
    PAGE.write_text(TEXT.format(steps=steps, batch=BATCH, pairs=PAIRS, table=table, notes=notes(records)))


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.studies.reward_training", description=__doc__)
    parser.add_argument("--objectives", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    args = parser.parse_args(args)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    records = read_records(RECORDS)
    for seed in args.seeds:
        for name in args.objectives:
            known = records.setdefault(name, {}).get(str(seed), {})
            if known.get("world") == WORLD and known.get("steps") == STEPS:
                continue
            start = time.process_time()
            method = train(RUNS[name], seed)
            found = tested(RUNS[name], method, seed) | {"steps": STEPS, "world": WORLD}
            records[name][str(seed)] = found | {"cpu_seconds": round(time.process_time() - start)}
            write_records(RECORDS, records)
            print(name, seed, records[name][str(seed)], flush=True)
    write(records)


if __name__ == "__main__":
    main()
