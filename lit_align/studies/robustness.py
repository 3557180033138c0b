"""Writes docs/robustness.md and .png: accuracy of preference methods under inverted labels, biased annotators, and two
annotators who disagree.

`python -m lit_align.studies.robustness --methods dpo kto --seeds 1`. Measurements are kept in docs/robustness.json, and
runs that it holds are not repeated.
"""

import argparse
import itertools
import shutil
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from lit_align.data.tables import read_table
from lit_align.paths import ROOT
from lit_align.shapes import WORLD
from lit_align.shapes.annotators import Annotator
from lit_align.shapes.make.pairs import make_pairs
from lit_align.studies import plot
from lit_align.studies.runs import (
    alternatives,
    earlier,
    fit_and_test,
    half_interval,
    markdown,
    read_records,
    world_of,
    write_records,
)

LISTS, FILES = "checkpoints/shapes-sd/lists/train.parquet", Path(f"checkpoints/robustness/world-{WORLD}")
RECORDS, PAGE, FIGURE = (ROOT / f"docs/robustness.{end}" for end in ("json", "md", "png"))
COLORS = {"dpo": plot.BLUE, "cdpo": plot.ORANGE, "rdpo": plot.GREEN, "ipo": plot.PINK, "kto": plot.RED}  # the methods
TOLD = ("cdpo", "rdpo")  # methods that are given the fraction of wrong labels


class Condition(NamedTuple):
    """Who labels the pairs. The annotators' utility is (1 - strength) correct + strength large; on a fraction `opposed`
    of the lists, in quarters, the second term is negative. Then a fraction `flip` of the labels is inverted."""

    flip: float = 0.0
    strength: float = 0.0
    opposed: float = 0.0

    @property
    def name(self) -> str:
        parts = {"large": self.strength, "opposed": self.opposed, "flip": self.flip}
        return "-".join(f"{what}-{x:g}" for what, x in parts.items() if x) or "judge"

    def annotators(self) -> list[Annotator]:
        """Four annotators, who take the lists in turn."""
        signs = [-1 if i < 4 * self.opposed else 1 for i in range(4)]
        return [Annotator({"correct": 1 - self.strength, "large": sign * self.strength}) for sign in signs]


SWEEPS = {  # what is varied -> its values -> the conditions
    "fraction of labels inverted": {x: Condition(flip=x) for x in (0, 0.1, 0.2, 0.3, 0.4)},
    "weight of a bias for large objects": {x: Condition(strength=x) for x in (0, 0.5, 0.75, 1)},
    "fraction of lists with the opposite bias": {x: Condition(strength=0.75, opposed=x) for x in (0, 0.25, 0.5)},
}
CONDITIONS = {c.name: c for sweep in SWEEPS.values() for c in sweep.values()}


def pair_file(condition: Condition, lists: list[dict]) -> Path:
    """The file of the condition's pairs, written if it does not exist."""
    from datasets import Dataset

    path = FILES / f"{condition.name}.parquet"
    if not path.exists():
        rows = make_pairs(lists, condition.annotators(), "shapes-sd", seed=0, flip=condition.flip)
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(list(rows)).to_parquet(str(path))
    return path


def disagreement(pairs, lists: list[dict]) -> dict:
    """The number of pairs, and the fractions whose winner the exact judge calls worse than the loser (`wrong`) or
    equal to it (`tied`)."""
    correct = {(one["prompt"], image): c for one in lists for image, c in zip(one["images"], one["correct"])}
    gap = lambda p: correct[p["caption"], p["jpg_0"]] - correct[p["caption"], p["jpg_1"]]
    gaps = [gap(p) if p["label_0"] == 1 else -gap(p) for p in pairs]
    return {"pairs": len(gaps), "wrong": mean(g < 0 for g in gaps), "tied": mean(g == 0 for g in gaps)}


def measure(condition: Condition, method: str, seed: int, seconds: int, test_batches: int | None, lists) -> dict:
    """The measurements of a run on the condition's pairs and their `disagreement`. Keeps no weights."""
    path = pair_file(condition, lists)
    labels = disagreement(read_table(str(path)), lists)
    rate = labels["wrong"] + labels["tied"] / 2  # a label of two equal images is wrong half of the time
    flags = ["--data.path", str(path)] + (["--model.flip_rate", str(rate)] if method in TOLD else [])
    found = fit_and_test(method, seed, seconds, test_batches, FILES / condition.name, flags)
    shutil.rmtree(FILES / condition.name)
    return found | labels


def accuracy(seeds: dict) -> tuple[float, float]:
    """Mean accuracy after training over seeds, and the half-width of the 95 % interval of its gain."""
    return mean(r["exact"]["all"]["after"] for r in seeds.values()), half_interval(seeds.values())


def newest(done: dict) -> tuple[dict, int]:
    """The runs of {condition: {method: {seed: run}}} that were measured in the latest world, and this world."""
    world = max(world_of(r) for methods in done.values() for seeds in methods.values() for r in seeds.values())
    kept: dict = {}
    for name, methods in done.items():
        for method, seeds in methods.items():
            if runs := {seed: run for seed, run in seeds.items() if world_of(run) == world}:
                kept.setdefault(name, {})[method] = runs
    return kept, world


def write(done: dict, seconds: int) -> None:
    """Writes page and figure of {condition: {method: {seed: run}}}."""
    done, world = newest(done)
    note = earlier(world)
    runs = [r for methods in done.values() for seeds in methods.values() for r in seeds.values()]
    seeds = alternatives(len(seeds) for methods in done.values() for seeds in methods.values())
    prompts, cores = (alternatives(values) for values in zip(*((r["exact"]["all"]["n"], r["cores"]) for r in runs)))
    before, rows = mean(r["exact"]["all"]["before"] for r in runs), []
    for name in (n for n in CONDITIONS if n in done):
        one = next(r for seeds_of in done[name].values() for r in seeds_of.values())
        cells = ["{:.3f} ± {:.3f}".format(*accuracy(done[name][m])) if m in done[name] else "-" for m in COLORS]
        rows.append([f"`{name}`", one["pairs"], f"{one['wrong'] + one['tied']:.3f}", f"{one['tied']:.3f}", *cells])
    PAGE.write_text(
        f"""# Robustness on Shapes

{note}Written by `python -m lit_align.studies.robustness`. Exact accuracy on {prompts} held-out prompts after
{seconds} s of training on {cores} core(s), mean of {seeds} seed(s), ± half the 95 % interval of its gain. Before
training it is {before:.3f}. All pairs are made from the same lists of samples; only the labels differ:

- `judge`: the exact judge labels the pairs.
- `flip-x`: the same, then a fraction x of the labels is inverted.
- `large-x`: the annotators' utility is (1 - x) correct + x large, where `large` is the fraction of large objects.
- `large-x-opposed-y`: the same, with -x in place of +x for a fraction y of the lists.

"Wrong or tied" is the fraction of pairs whose winner the exact judge does not call better; "tied" is the part of them
with two equal images. `cdpo` and `rdpo` are given the fraction of wrong labels, with ties counted half.

![Accuracy against the errors of the labels](robustness.png)

"""
        + markdown(["labels", "pairs", "wrong or tied", "tied", *COLORS], rows)
    )
    draw(done, before)
    print(PAGE.read_text())


def draw(done: dict, before: float) -> None:
    """A panel for each sweep: a line with 95 % intervals for each method, dashed the accuracy before training."""
    figure, (axes,) = plot.panels(1, len(SWEEPS), 4.2, 3.6)
    for ax, (title, sweep) in zip(axes, SWEEPS.items(), strict=True):
        ax.axhline(before, color=plot.BLACK, linewidth=1, linestyle="--", label="before training")
        for i, (method, color) in enumerate(COLORS.items()):
            found = {x: accuracy(done[c.name][method]) for x, c in sweep.items() if method in done.get(c.name, {})}
            if not found:
                continue
            places = [x + 0.012 * max(sweep) * (i - 2) for x in found]  # intervals side by side
            middle, half = zip(*found.values())
            ax.errorbar(places, middle, half, color=color, label=method, marker="o", markersize=4, linewidth=1.5)
        ax.set(xlabel=title, xticks=list(sweep))
    axes[0].set_ylabel("exact accuracy")
    plot.legend(axes[1], "lower left")
    plot.save(figure, FIGURE)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.studies.robustness", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(COLORS), choices=COLORS)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=int, default=120, help="training time of every run")
    parser.add_argument("--test_batches", type=int, help="batches of 32 held-out prompts (default: all)")
    args = parser.parse_args(args)
    records = read_records(RECORDS)
    done, lists = records.setdefault(f"{args.seconds} s", {}), list(read_table(LISTS))
    for seed, name, method in itertools.product(map(str, args.seeds), args.conditions, args.methods):
        seeds = done.setdefault(name, {}).setdefault(method, {})
        if world_of(seeds.get(seed, {})) != WORLD:
            seeds[seed] = measure(CONDITIONS[name], method, int(seed), args.seconds, args.test_batches, lists)
            write_records(RECORDS, records)
    write(done, args.seconds)


if __name__ == "__main__":
    main()
