"""Writes docs/overoptimization.md and .png: the proxy reward and the exact reward during training on the proxy.

`python -m lit_align.studies.overoptimization --runs ddpo draft`. Measurements are kept in docs/overoptimization.json,
and runs that it holds are not repeated.
"""

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from lit_align.callbacks.reward_overoptimization import RewardOveroptimizationStopping
from lit_align.paths import ROOT
from lit_align.shapes import WORLD
from lit_align.studies import plot
from lit_align.studies.runs import (
    alternatives,
    cores,
    cpu_time,
    earlier,
    lit_align,
    markdown,
    read_records,
    scalars,
    world_of,
)
from lit_align.studies.runs import write_records as save

FOLDER = Path("checkpoints/overoptimization")
RECORDS, PAGE, FIGURE = (ROOT / f"docs/overoptimization.{end}" for end in ("json", "md", "png"))
SAMPLES = ROOT / "docs/overoptimization_samples.png"
LORA = '{"class_path": "LoRA", "init_args": {"rank": 8}}'
RATE, FOUR = "model.optimizer.init_args.lr", {"model.samples_per_prompt": 4}
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
SHOWN, SECONDS = "draft, longer", 600  # CPU seconds of a run, validation included
LONGER = {SHOWN: 1800, "draft with KL, longer": 1800}
SCALED, SCALES = "draft, LoRA", (0.25, 0.5, 0.75, 1.0)
NOISE = 0.04  # standard error of the difference of the held-out reward between two validations
COLORS = {"proxy": plot.BLUE, "held-out": plot.ORANGE, "exact accuracy": plot.BLACK}


TEXT = """# Reward over-optimization on Shapes

{note}Written by `python -m lit_align.studies.overoptimization`. Every run trains on a proxy reward: a small network
trained on the preferences of simulated annotators (`checkpoints/shapes-reward`). A run takes {seconds} s of CPU time
({longer}), validation included, on {used} core(s); in world 1 these were seconds of wall-clock time.
Learning rates are high on purpose. A second reward is held out: it is larger than the proxy and was trained longer, on
comparisons of another seed.

Each validation measures both rewards, in standard deviations of the base model's guided samples, and **exact**, the
exact judge's accuracy, on 512 held-out prompts without guidance, always with the same seeds. The half-width of the 95 %
interval of exact is 0.04 for one validation and smaller for differences.

`RewardOveroptimizationStopping` is replayed on the recorded validations, while the run itself goes on to its end. It
reads the proxy and the held-out reward, never the exact one. It ends a run if the held-out reward falls by more than
`min_delta` twice in a row while the proxy rises, and it always keeps the weights of the best held-out validation.
`min_delta` is {noise}, the standard error of the difference of the held-out reward between two validations.

What the runs show:

- In ten minutes no run is over-optimized so far that the callback ends it.
- `draft, longer` is over-optimized, and the callback ends it. The run also shows a limit of the callback: the held-out
  reward starts to fall 200 steps later than the exact one, because it, too, was trained on rendered scenes and on
  samples of the base model, never on samples of a trained policy. So the kept weights are not within 5 % of the best
  exact reward, but they are far better than those at the end.
- With the path KL of `elegant`, the same time leads neither to over-optimization nor far from the base model.
- The held-out reward has to be the better judge. In a trial of `draft` with a held-out reward as small as the proxy, it
  rose together with the proxy, and the callback kept 0.504 of 0.586.

![Proxy, held-out and exact reward during training](overoptimization.png)

Each cell of the table shows proxy, exact.

{table}
Samples of `{shown}` for the same prompts and noise: the base model, the best exact reward, the weights that the
callback keeps, and the end.

![Samples while the proxy rises](overoptimization_samples.png)

The last checkpoint of `{scaled}` (every 50 steps), with its LoRA scaled:

{sweep}"""


def folder(name: str) -> Path:
    return FOLDER / name.replace(" ", "_")


def words(name: str) -> list[str]:
    """The flags of a run."""
    config, every, flags = RUNS[name]
    flags = flags | {
        "trainer.default_root_dir": folder(name),
        "trainer.max_steps": -1,
        "trainer.max_epochs": -1,
        "trainer.val_check_interval": every,
        "trainer.enable_progress_bar": False,
        "trainer.limit_val_batches": 16,  # of 32 prompts
        "data.val_prompts": "configs/shapes/prompts/test.jsonl",
    }
    given = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return ["--config", f"shapes/{config}", "--config", "with/proxy", *given, *cpu_time(LONGER.get(name, SECONDS))]


def fit(name: str) -> list[dict]:
    """Validates the base model, trains, and returns every validation: {"step", "proxy", "second", ...}."""
    shutil.rmtree(folder(name), ignore_errors=True)
    lit_align("validate", *words(name))
    lit_align("fit", *words(name))
    return curve(folder(name))


def at_scales(name: str) -> dict[str, dict]:
    """Validations of the last checkpoint with its LoRA scaled by each of SCALES."""
    found, scaled = {}, FOLDER / "scaled"
    for scale in SCALES:
        shutil.rmtree(scaled, ignore_errors=True)
        at = ["--ckpt_path", str(folder(name) / "checkpoints/last.ckpt")]
        at += ["--trainer.default_root_dir", str(scaled), "--trainer.callbacks+", "LoRAScaling"]
        lit_align("validate", *words(name), *at, "--trainer.callbacks.scale", str(scale))
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
    """The validation whose weights RewardOveroptimizationStopping keeps when it reads `proxy` and `second` alone, and
    `ended`, the step at which it ends training."""
    callback = RewardOveroptimizationStopping("proxy", ["second"], patience, min_delta)
    one_rank, state = SimpleNamespace(reduce=lambda value, reduce_op: value), SimpleNamespace(fn="fit")
    trainer = SimpleNamespace(strategy=one_rank, sanity_checking=False, state=state, should_stop=False)
    for point in points:
        trainer.global_step, trainer.callback_metrics = point["step"], point
        callback.on_validation_end(trainer, torch.nn.Module())
        if trainer.should_stop:
            break
    return next(p for p in points if p["step"] == callback.best_step) | {"ended": point["step"]}


def table(records: dict) -> str:
    """A row for each run."""
    pair = lambda p: f"{p['proxy']:+.2f}, {p['exact']:.3f}"
    heads = ["run", "before", "best exact", "end", "callback ends at", "callback keeps", "its share of the best exact"]
    rows = []
    for name, points in ((n, records[n]["curve"]) for n in RUNS if n in records):
        best, kept = max(points, key=lambda p: p["exact"]), stopped(points)
        rows.append(
            [f"`{name}`", pair(points[0]), f"{pair(best)} (step {best['step']})"]
            + [f"{pair(points[-1])} (step {points[-1]['step']})"]
            + [f"step {kept['ended']}" if kept["ended"] < points[-1]["step"] else "no"]
            + [f"{pair(kept)} (step {kept['step']})", f"{kept['exact'] / best['exact']:.0%}"]
        )
    return markdown(heads, rows)


def write(records: dict) -> None:
    """Writes the page and its figure. The page also shows SAMPLES, which `samples` writes after its run."""
    world = max(map(world_of, records.values()))
    records = {name: record for name, record in records.items() if world_of(record) == world}
    scales = records.get(SCALED, {}).get("scaled", {})
    cells = ([scale, f"{p['proxy']:+.2f}", f"{p['exact']:.3f}"] for scale, p in scales.items())
    text = TEXT.format(
        note=earlier(world),
        seconds=SECONDS,
        longer=", ".join(f"`{name}`: {seconds} s" for name, seconds in LONGER.items()),
        used=alternatives(record["cores"] for record in records.values()),
        noise=NOISE,
        table=table(records),
        shown=SHOWN,
        scaled=SCALED,
        sweep=markdown(["scale", "proxy", "exact"], cells) if scales else "not run\n",
    )
    PAGE.write_text(text)
    draw(records)
    print(text)


def draw(records: dict) -> None:
    """Two panels for each run, one below the other: both rewards, and exact accuracy, over training steps. A vertical
    line marks the weights that the callback keeps, a dashed one the step at which it ends training."""
    names, across = [n for n in RUNS if n in records], 5
    figure, axes = plot.panels(2 * -(-len(names) // across), across, 3.2, 2.2)
    every = [p for n in names for p in records[n]["curve"]]
    lines = ({"proxy": "proxy", "held-out": "second"}, {"exact accuracy": "exact"})  # of each panel: label -> key
    spans = [[edge(p[k] for p in every for k in keys.values()) for edge in (min, max)] for keys in lines]
    columns = [(axes[row][i], axes[row + 1][i]) for row in range(0, len(axes), 2) for i in range(across)]
    for pair, name in zip(columns, names):
        points, kept = records[name]["curve"], stopped(records[name]["curve"])
        for ax, keys, (low, high) in zip(pair, lines, spans):
            for label, key in keys.items():
                ax.plot(*zip(*((p["step"], p[key]) for p in points)), color=COLORS[label], label=label)
            ax.axvline(kept["step"], color=plot.GREEN, linewidth=1.5, label="callback keeps")
            if kept["ended"] < points[-1]["step"]:
                ax.axvline(kept["ended"], color=plot.RED, linestyle="--", label="callback ends")
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        pair[0].set_title(name)
        pair[0].tick_params(labelbottom=False)
        pair[1].set_xlabel("training step")
    for top, bottom in columns[::across]:
        top.set_ylabel("reward (std.)")
        bottom.set_ylabel("exact accuracy")
    for ax in (ax for pair in columns[len(names) :] for ax in pair):
        ax.remove()
    shown = names.index(SHOWN) if SHOWN in names else 0
    plot.legend(columns[0][0], "upper left")
    plot.legend(columns[shown][1], "upper right")
    plot.save(figure, FIGURE)


def samples(name: str, points: list[dict]) -> None:
    """Writes SAMPLES: a run's image grids of the base model, at the best exact reward, at the kept weights, and at the
    end."""
    shown = {
        "base": points[0],
        "best exact": max(points, key=lambda p: p["exact"]),
        "kept by the callback": stopped(points),
        "end": points[-1],
    }
    title = lambda what, p: f"{what}, step {p['step']}: proxy {p['proxy']:+.2f}, exact {p['exact']:.2f}"
    # a grid is named by the number of steps made, a validation by the index of the last of them
    file = lambda p: folder(name) / f"samples/step_{p['step'] + (p['step'] > 0):06d}.png"
    plot.gallery({title(what, p): Image.open(file(p)) for what, p in shown.items()}, SAMPLES)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.studies.overoptimization", description=__doc__)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    args = parser.parse_args(args)
    records = read_records(RECORDS)
    for name in args.runs:
        if world_of(records.get(name, {})) != WORLD:
            records[name] = {"curve": fit(name), "cores": cores(), "world": WORLD}
            if name == SHOWN:
                samples(name, records[name]["curve"])
            if name == SCALED:
                records[name]["scaled"] = at_scales(name)
            save(RECORDS, records)
    write(records)


if __name__ == "__main__":
    main()
