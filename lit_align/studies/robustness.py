"""Writes docs/robustness.md and .png: accuracy when labels are flipped, when annotators are biased, when two disagree.

`python -m lit_align.robustness --methods dpo kto --seeds 1`. What a run measured is kept in docs/robustness.json; a run
that stands there is not done again.
"""

import argparse
import itertools
import json
import math
import shutil
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lit_align.data.tables import read_table
from lit_align.paths import ROOT
from lit_align.results import half_interval, run
from lit_align.shapes.annotators import Annotator
from lit_align.shapes.pairs import make_pairs

LISTS, FILES = "checkpoints/shapes-sd/lists/train.parquet", Path("checkpoints/robustness")
RECORDS, TABLE, PLOT = (ROOT / f"docs/robustness.{end}" for end in ("json", "md", "png"))
COLORS = {"dpo": "#0072b2", "cdpo": "#e69f00", "rdpo": "#009e73", "ipo": "#cc79a7", "kto": "#d55e00"}  # the methods
TOLD = ("cdpo", "rdpo")  # those that are told how many labels are wrong


class Condition(NamedTuple):
    """Who labels the pairs: u = (1 - strength) correct + strength large; on a share `opposed` of the lists (in
    quarters) one who dislikes it as much; and a share `flip` of all labels is turned round."""

    flip: float = 0.0
    strength: float = 0.0
    opposed: float = 0.0

    @property
    def name(self) -> str:
        parts = {"large": self.strength, "opposed": self.opposed, "flip": self.flip}
        return "-".join(f"{what}-{x:g}" for what, x in parts.items() if x) or "judge"

    def annotators(self) -> list[Annotator]:
        """Four, who take the lists in turn."""
        signs = [-1 if i < 4 * self.opposed else 1 for i in range(4)]
        return [Annotator({"correct": 1 - self.strength, "large": sign * self.strength}) for sign in signs]


FAMILIES = {  # what is varied -> its values -> the conditions
    "share of labels flipped": {x: Condition(flip=x) for x in (0, 0.1, 0.2, 0.3, 0.4)},
    "weight of a liking for large": {x: Condition(strength=x) for x in (0, 0.5, 0.75, 1)},
    "share of lists labelled by one who dislikes large": {
        x: Condition(strength=0.75, opposed=x) for x in (0, 0.25, 0.5)
    },
}
CONDITIONS = {c.name: c for family in FAMILIES.values() for c in family.values()}


def pair_file(condition: Condition, lists: list[dict]) -> Path:
    """The condition's pairs, made where they are not there yet."""
    from datasets import Dataset

    path = FILES / f"{condition.name}.parquet"
    if not path.exists():
        rows = make_pairs(lists, condition.annotators(), "shapes-sd", seed=0, flip=condition.flip)
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(list(rows)).to_parquet(str(path))
    return path


def disagreement(pairs, lists: list[dict]) -> dict:
    """The number of pairs, and the shares whose winner the exact judge calls the loser (`wrong`) or no better
    (`tied`)."""
    correct = {(one["prompt"], image): c for one in lists for image, c in zip(one["images"], one["correct"])}
    gap = lambda p: correct[p["caption"], p["jpg_0"]] - correct[p["caption"], p["jpg_1"]]
    gaps = [gap(p) if p["label_0"] == 1 else -gap(p) for p in pairs]
    return {"pairs": len(gaps), "wrong": mean(g < 0 for g in gaps), "tied": mean(g == 0 for g in gaps)}


def measure(condition: Condition, method: str, seed: int, seconds: int, test_batches: int | None, lists) -> dict:
    """A run on the condition's pairs, as `results.run` reports it, with their `disagreement`; keeps no weights."""
    path = pair_file(condition, lists)
    labels = disagreement(read_table(str(path)), lists)
    rate = labels["wrong"] + labels["tied"] / 2  # the label of two equals is wrong half the time
    extra = ["--data.path", str(path)] + (["--model.flip_rate", str(rate)] if method in TOLD else [])
    found = run(method, seed, seconds, test_batches, FILES / condition.name, extra)
    shutil.rmtree(FILES / condition.name)
    return found | labels


def accuracy(seeds: dict) -> tuple[float, float]:
    """Mean of the seeds' runs after training, and half the 95 % interval of its gain."""
    return mean(r["exact"]["all"]["after"] for r in seeds.values()), half_interval(list(seeds.values()))


def write(done: dict, seconds: int) -> None:
    """Table and plot of {condition: {method: {seed: run}}}."""
    runs = [r for methods in done.values() for seeds in methods.values() for r in seeds.values()]
    either = lambda values: " or ".join(str(v) for v in sorted(set(values)))
    seeds = either(len(seeds) for methods in done.values() for seeds in methods.values())
    prompts, cores = either(r["exact"]["all"]["n"] for r in runs), either(r["cores"] for r in runs)
    before = mean(r["exact"]["all"]["before"] for r in runs)
    heads = ["labels", "pairs", "not the judge's winner", "a tie to the judge", *COLORS]
    lines = [heads, ["---"] * len(heads)]
    for name in (n for n in CONDITIONS if n in done):
        one = next(r for seeds in done[name].values() for r in seeds.values())
        cells = ["{:.3f} ± {:.3f}".format(*accuracy(done[name][m])) if m in done[name] else "-" for m in COLORS]
        lines.append([f"`{name}`", one["pairs"], f"{one['wrong'] + one['tied']:.3f}", f"{one['tied']:.3f}", *cells])
    TABLE.write_text(
        f"""# Robustness on Shapes

Written by `python -m lit_align.robustness`. Exact accuracy on {prompts} held-out prompts after {seconds} s of training
on {cores} core(s), mean of {seeds} seed(s), ± half the 95 % interval of its gain; before training it is {before:.3f}.
The pairs are always of the same lists of samples. `judge`: labelled by the exact judge; `flip-x`: a share x of those
labels turned round; `large-x`: by a utility of (1 - x) correct + x share of large objects; `large-x-opposed-y`: that
with -x in place of x for a share y of the lists. `cdpo` and `rdpo` are told the share of wrong labels, a tie counted
half.

![Accuracy against what is wrong with the labels](robustness.png)

"""
        + "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    )
    plot(done, before)
    print(TABLE.read_text())


def plot(done: dict, before: float) -> None:
    """A panel for each family, a line for each method; the black line is the accuracy before training."""
    w, h, scale = 440, 290, 2  # of a panel; drawn at twice the size
    image = Image.new("RGB", (len(FAMILIES) * w * scale, (h + 30) * scale), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12 * scale)
    text = lambda x, y, what, anchor, color="black": draw.text((x * scale, y * scale), what, color, font, anchor)
    line = lambda *points, color="black": draw.line([(x * scale, y * scale) for x, y in points], color, 2 * scale)
    every = [accuracy(seeds) for methods in done.values() for seeds in methods.values()]
    low, high = min(before, *(a - e for a, e in every)) - 0.01, max(before, *(a + e for a, e in every)) + 0.01
    for k, (title, family) in enumerate(FAMILIES.items()):
        left, bottom, wide, tall = k * w + 50, h - 20, w - 70, h - 70
        across = lambda x: left + 20 + x / max(family) * (wide - 40)
        up = lambda y: bottom - (y - low) / (high - low) * tall
        text(left - 36, bottom - tall - 24, f"exact accuracy, by {title}", "lm")
        for y in range(math.ceil(low * 20), math.floor(high * 20) + 1):
            text(left - 5, up(y / 20), f"{y / 20:.2f}", "rm")
            line((left, up(y / 20)), (left + wide, up(y / 20)), color="#eeeeee")
        line((left, bottom - tall), (left, bottom), (left + wide, bottom))
        line((left, up(before)), (left + wide, up(before)))
        for x in family:
            text(across(x), bottom + 5, f"{x:g}", "ma")
        for i, (method, color) in enumerate(COLORS.items()):
            found = {x: accuracy(done[c.name][method]) for x, c in family.items() if method in done.get(c.name, {})}
            place = lambda x, y: (across(x) + 4 * (i - 2), up(y))  # intervals side by side
            for x, (mid, half) in found.items():
                line(place(x, mid - half), place(x, mid + half), color=color)
            line(*(place(x, mid) for x, (mid, _) in found.items()), color=color)
    for i, (what, color) in enumerate([*COLORS.items(), ("before training", "black")]):
        text(50 + 70 * i, h + 15, what, "lm", color)
    image.reduce(scale).save(PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(COLORS), choices=COLORS)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=int, default=120, help="of training")
    parser.add_argument("--test_batches", type=int, help="of 32 held-out prompts each (default: all)")
    args = parser.parse_args()
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    done, lists = records.setdefault(f"{args.seconds} s", {}), list(read_table(LISTS))
    for seed, name, method in itertools.product(map(str, args.seeds), args.conditions, args.methods):
        seeds = done.setdefault(name, {}).setdefault(method, {})
        if seed not in seeds:
            seeds[seed] = measure(CONDITIONS[name], method, int(seed), args.seconds, args.test_batches, lists)
            RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    write(done, args.seconds)


if __name__ == "__main__":
    main()
