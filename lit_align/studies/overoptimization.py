"""Writes docs/overoptimization.md and .png: proxy and exact reward as training on the proxy goes on.

`python -m lit_align.overoptimization --runs ddpo draft`. What a run measured is kept in docs/overoptimization.json; a
run that stands there is not done again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image, ImageDraw, ImageFont

from lit_align.callbacks.reward_overoptimization import RewardOveroptimizationStopping
from lit_align.paths import ROOT
from lit_align.results import budget, cores, scalars

FOLDER = Path("checkpoints/overoptimization")
RECORDS, PAGE, PLOT = (ROOT / f"docs/overoptimization.{end}" for end in ("json", "md", "png"))
SHEET = ROOT / "docs/overoptimization_samples.png"
LORA = '{"class_path": "LoRA", "init_args": {"rank": 8}}'
RATE = "model.optimizer.init_args.lr"
FOUR = {"model.samples_per_prompt": 4}
DPOK = FOUR | {RATE: 5e-5, "model.value_lr": 1e-4, "model.updates": 1}
KL = {RATE: 4e-5, "model.alpha": 0.1, "model.learn_initial": "false"}
RUNS = {  # name -> config, batches between validations, flags
    "ddpo": ("ddpo", 8, FOUR | {RATE: 5e-5}),
    "dpok": ("dpok", 6, DPOK | {"model.kl_weight": 0.1}),
    "dpok without KL": ("dpok", 6, DPOK | {"model.kl_weight": 0}),
    "tdpo_r": ("tdpo_r", 4, FOUR | {RATE: 1e-5}),
    "draft": ("draft_k", 20, {RATE: 4e-5}),
    "draft, longer": ("draft_k", 40, {RATE: 4e-5}),
    "draft with KL (elegant)": ("elegant", 5, KL),
    "draft with KL, longer": ("elegant", 20, KL),
    "draft, LoRA": ("draft_k", 20, {RATE: 1e-3, "model.policy.init_args.adapter": LORA}),
    "alignprop": ("alignprop", 12, {RATE: 4e-5}),
}
SHOWN = "draft, longer"
SECONDS, LONGER = 600, {SHOWN: 1800, "draft with KL, longer": 1800}  # of a run, validation included
SCALED, SCALES = "draft, LoRA", (0.25, 0.5, 0.75, 1.0)
NOISE = 0.04  # standard error of the difference of `second` between two validations
WATCHED = ("proxy", "second", "exact")
COLORS = {"proxy": "#0072b2", "second": "#e69f00", "exact": "#000000"}


def folder(name: str) -> Path:
    """Where a run lies."""
    return FOLDER / name.replace(" ", "_")


def words(name: str) -> list[str]:
    """The flags of a run."""
    config, every, flags = RUNS[name]
    flags = flags | {
        "trainer.default_root_dir": folder(name),
        "trainer.val_check_interval": every,
        "trainer.enable_progress_bar": False,
        "trainer.limit_val_batches": 16,  # of 32
        "data.val_prompts": "configs/shapes/prompts/test.jsonl",
    }
    given = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return ["--config", f"shapes/{config}", "--config", "with/proxy", *given]


def fit(name: str) -> list[dict]:
    """Trains; the validations on the way, and before it: {"step", "proxy", "second", "exact", "diversity"} of each."""
    command = [sys.executable, "-m", "lit_align"]
    shutil.rmtree(folder(name), ignore_errors=True)
    subprocess.run([*command, "validate", *words(name)], check=True)
    time = budget(LONGER.get(name, SECONDS))
    subprocess.run([*command, "fit", *words(name), "--trainer.max_steps", "-1", *time], check=True)
    return curve(folder(name))


def at_scales(name: str) -> dict[str, dict]:
    """The trained adapter, as the last checkpoint has it, validated at a part of its strength."""
    found, scaled = {}, FOLDER / "scaled"
    for scale in SCALES:
        shutil.rmtree(scaled, ignore_errors=True)
        at = ["--ckpt_path", str(folder(name) / "checkpoints/last.ckpt")]
        at += ["--trainer.default_root_dir", str(scaled), "--trainer.callbacks+", "LoRAScaling"]
        at += ["--trainer.callbacks.scale", str(scale)]
        subprocess.run([sys.executable, "-m", "lit_align", "validate", *words(name), *at], check=True)
        found[str(scale)] = curve(scaled)[0]
    return found


def curve(run: Path) -> list[dict]:
    """The validations that a run logged, in order."""
    logged, rows = scalars(run), {}
    for key in ("reward/proxy", "reward/second", "reward/exact", "diversity"):
        for step, value in logged.get(f"val/{key}", {}).items():
            rows.setdefault(step, {})[key.split("/")[-1]] = value
    return [{"step": step} | rows[step] for step in sorted(rows)]


def stopped(points: list[dict], patience: int = 2, min_delta: float = NOISE) -> dict:
    """The point whose weights RewardOveroptimizationStopping keeps, as it sees nothing but proxy and second."""
    callback = RewardOveroptimizationStopping("proxy", ["second"], patience, min_delta)
    alone = SimpleNamespace(reduce=lambda value, reduce_op: value)
    trainer = SimpleNamespace(strategy=alone, sanity_checking=False, state=SimpleNamespace(fn="fit"), should_stop=False)
    for point in points:
        trainer.global_step, trainer.callback_metrics = point["step"], point
        callback.on_validation_end(trainer, torch.nn.Module())
        if trainer.should_stop:
            break
    return next(p for p in points if p["step"] == callback.best_step) | {"ended": point["step"]}


def table(records: dict) -> str:
    """A line for each run."""
    pair = lambda p: f"{p['proxy']:+.2f}, {p['exact']:.3f}"
    heads = ["run", "before", "best exact", "end", "ended by the callback", "kept by it", "of the best exact"]
    lines = [heads, ["---"] * len(heads)]
    for name, points in ((n, records[n]["curve"]) for n in RUNS if n in records):
        best, kept = max(points, key=lambda p: p["exact"]), stopped(points)
        lines.append(
            [f"`{name}`", pair(points[0]), f"{pair(best)} (step {best['step']})"]
            + [f"{pair(points[-1])} (step {points[-1]['step']})"]
            + [f"step {kept['ended']}" if kept["ended"] < points[-1]["step"] else "no"]
            + [f"{pair(kept)} (step {kept['step']})", f"{kept['exact'] / best['exact']:.0%}"]
        )
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def write(records: dict) -> None:
    """The page and its plot. The page shows SHEET, which its run has made."""
    scaled = records.get(SCALED, {}).get("scaled", {})
    used = " or ".join(sorted({str(record["cores"]) for record in records.values()}))
    longer = ", ".join(f"`{name}`: {seconds} s" for name, seconds in LONGER.items())
    sweep = ", ".join(f"{scale}: {p['proxy']:+.2f}, {p['exact']:.3f}" for scale, p in scaled.items())
    PAGE.write_text(
        f"""# Reward over-optimization on Shapes

Written by `python -m lit_align.overoptimization`. Every run trains on the proxy, a small reward learnt from simulated
annotators (`checkpoints/shapes-reward`), for {SECONDS} s ({longer}) on {used}
core(s), validation included, with learning rates that are high on purpose. A second reward is held out: larger, trained
longer, on comparisons of another seed.

`RewardOveroptimizationStopping` is replayed on the validations, while the run goes on to its end; it sees these two and
nothing else, the base first; its `min_delta` is {NOISE}, the standard error of the difference of the second between
two validations. Exact is the judge's accuracy on 512 held-out prompts, always with the same seeds (half-width of its
95 % interval 0.04 for one point, less for differences).
Both rewards are in standard deviations of the base's guided samples; all is drawn without guidance. A cell is proxy,
exact. In a trial of `draft` with a held-out reward of the proxy's own size, it went on rising with the proxy, and the
callback kept 0.504 of 0.586: what is held out has to be the better judge. Where the callback ends no run, it has still
kept the weights of the best validation: it ends a run whose held-out reward falls by more than `min_delta`, twice in a
row, while the proxy rises.

In ten minutes no run goes far enough to be ended. `draft, longer` does, and shows the callback's limit, too: the second
does not fall for 200 steps after the exact reward has begun to: it, too, is learnt from scenes and from samples of the
base, and has seen none of a trained policy. What is kept is then not within 5 % of the best; it is far from where the
run ends. With the path KL of `elegant` the same time leads neither there nor far from the base.

![Proxy and exact reward as training goes on](overoptimization.png)

{table(records)}
`{SHOWN}`, the same prompts and noise: the base, at the best exact reward, as the callback keeps it, at the end.

![Samples while the proxy rises](overoptimization_samples.png)

The last checkpoint of `{SCALED}` (every 50 steps) with its LoRA at a part of its strength, proxy and exact:
{sweep or "not run"}.
"""
    )
    plot(records)
    print(PAGE.read_text())


def plot(records: dict) -> None:
    """A panel for each run: proxies on the left axis, exact on the right one, over training batches; a vertical line
    where the callback keeps the weights, a dashed one where it ends training."""
    w, h, scale, across = 330, 230, 2, 4
    names = [n for n in RUNS if n in records]
    image = Image.new("RGB", (across * w * scale, (-(-len(names) // across) * h + 30) * scale), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12 * scale)
    text = lambda x, y, what, anchor, color="black": draw.text((x * scale, y * scale), what, color, font, anchor)
    line = lambda *points, color="black": draw.line([(x * scale, y * scale) for x, y in points], color, 2 * scale)
    every = [p for n in names for p in records[n]["curve"]]
    span = lambda *keys: (min(p[k] for p in every for k in keys), max(p[k] for p in every for k in keys))
    ranges = dict.fromkeys(("proxy", "second"), span("proxy", "second")) | {"exact": span("exact")}
    for i, name in enumerate(names):
        points = records[name]["curve"]
        left, top, wide, tall = i % across * w + 40, i // across * h + 30, w - 90, h - 60
        x = lambda step: left + wide * step / max(p["step"] for p in points)
        y = lambda key, value: top + tall * (1 - (value - ranges[key][0]) / (ranges[key][1] - ranges[key][0]))
        text(left, top - 14, name, "lm")
        line((left, top), (left, top + tall), (left + wide, top + tall), (left + wide, top), color="#999999")
        for key, edge, anchor in (("proxy", left - 4, "rm"), ("exact", left + wide + 4, "lm")):
            for value in ranges[key]:
                text(edge, y(key, value), f"{value:.2f}", anchor, COLORS[key])
        text(left + wide, top + tall + 10, f"{points[-1]['step']} steps", "rm")
        kept = stopped(points)
        line((x(kept["step"]), top), (x(kept["step"]), top + tall), color="#009e73")
        for dash in range(0, tall if kept["ended"] < points[-1]["step"] else 0, 8):
            line((x(kept["ended"]), top + dash), (x(kept["ended"]), top + dash + 4), color="#d55e00")
        for key in WATCHED:
            line(*((x(p["step"]), y(key, p[key])) for p in points), color=COLORS[key])
    legend = [*COLORS.items(), ("kept by the callback", "#009e73"), ("ended by it", "#d55e00")]
    for i, (what, color) in enumerate(legend):
        text(40 + 150 * i, image.height / scale - 14, what, "lm", color)
    image.reduce(scale).save(PLOT)


def sheet(name: str, points: list[dict]) -> None:
    """SHEET: the grids that a run has drawn, of the base, at the best exact reward, as the callback keeps it, and at
    the end."""
    shown = {
        "base": points[0],
        "best exact": max(points, key=lambda p: p["exact"]),
        "kept by the callback": stopped(points),
        "end": points[-1],
    }
    # a grid is named by the steps that were made, a validation by the last of them
    files = [folder(name) / f"samples/step_{p['step'] + (p['step'] > 0):06d}.png" for p in shown.values()]
    grids, font = [Image.open(file) for file in files], ImageFont.load_default(20)
    w, h = grids[0].width + 30, grids[0].height
    image = Image.new("RGB", (w * len(grids), h + 40), "white")
    draw = ImageDraw.Draw(image)
    for i, (grid, (what, p)) in enumerate(zip(grids, shown.items(), strict=True)):
        image.paste(grid, (w * i, 40))
        title = f"{what}, step {p['step']}: proxy {p['proxy']:+.2f}, exact {p['exact']:.2f}"
        draw.text((w * i + 6, 20), title, "black", font, "lm")
    image.save(SHEET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    args = parser.parse_args()
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    for name in args.runs:
        if name not in records:
            records[name] = {"curve": fit(name), "cores": cores()}
            if name == SHOWN:
                sheet(name, records[name]["curve"])
            if name == SCALED:
                records[name]["scaled"] = at_scales(name)
            RECORDS.write_text(json.dumps(records, indent=1) + "\n")
    write(records)


if __name__ == "__main__":
    main()
