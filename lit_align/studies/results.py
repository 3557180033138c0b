"""Writes docs/results.md: the methods of configs/shapes, a family at one budget of time, several seeds, a table each.

`python -m lit_align.results --methods dpo ipo --seeds 1 2 3`. What a run measured is kept in docs/results.json; a run
that stands there is not done again.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from lit_align import cli
from lit_align.algorithms.algorithm import Algorithm
from lit_align.methods import family_of
from lit_align.paths import ROOT

CONFIGS, RUNS = ROOT / "configs/shapes", Path("checkpoints/results")
RECORDS, TABLE = ROOT / "docs/results.json", ROOT / "docs/results.md"
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
LOGGED = ("train/implicit_accuracy", "test/diversity", "test/drift", "perf/peak_memory_mb")
SECONDS = {"preference": 120}  # of training; the other families get SAMPLING
SAMPLING = 600


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def budget(seconds: int) -> list[str]:
    """The flags that end training after some seconds."""
    minutes, rest = divmod(seconds, 60)
    return ["--trainer.max_time", f"00:{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"]


def run(
    method: str, seed: int, seconds: int, test_batches: int | None, runs: Path = RUNS, extra: list[str] | None = None
) -> dict:
    """Trains a method for some seconds, tests it, and returns what was measured. The run's folder is emptied before.
    `extra`: flags for both."""
    folder = runs / f"{method}-{seconds}s" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    common = ["--config", f"shapes/{method}", "--config", "with/budget", "--trainer.default_root_dir", str(folder)]
    common += ["--seed_everything", str(seed), "--data.seed", str(seed), *(extra or [])]
    subprocess.run([sys.executable, "-m", "lit_align", "fit", *common, *budget(seconds)], check=True)
    alike = ["--data.test_prompts", "configs/shapes/prompts/test.jsonl", "--model.rewards", '["ShapesJudge"]']
    limit = ["--trainer.limit_test_batches", str(test_batches)] if test_batches else []
    with patch.object(Algorithm, "baseline", baseline):
        cli.main(["test", *common, *alike, *limit, "--ckpt_path", "last"])
    found = scalars(folder)
    logged = {name: list(values.values()) for name, values in found.items()}
    first, last = fifth(logged, 0), fifth(logged, -1)
    last |= {name: max(values) for name, values in logged.items() if "peak" in name}
    return {
        "exact": json.loads((folder / "comparison.json").read_text())["exact"],
        "fit_seconds": json.loads((folder / "fit_seconds.json").read_text()),
        "batches": 1 + max((max(steps) for name, steps in found.items() if name.startswith("train/")), default=-1),
        "cores": cores(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "train/reward": [first.get("train/reward"), last.get("train/reward")],
        **{name: last[name] for name in LOGGED if name in last},
    }


def remembering(baseline):
    """`Algorithm.baseline` that draws a base's samples once for all its tests; a base is known by its first batch."""
    bases: dict[bytes, dict] = {}  # images of the first batch -> {rows: samples}
    current: dict = {}  # the module under test, and its base's samples

    def remembered(module: Algorithm, batch: dict) -> dict | None:
        rows = tuple(batch["index"])
        if current.get("module") is not module:
            if (first := baseline(module, batch)) is None:
                return None
            current["samples"] = bases.setdefault(first["image"].cpu().numpy().tobytes(), {rows: first})
            current["module"] = module
        samples = current["samples"]
        if rows not in samples:
            samples[rows] = baseline(module, batch)
        return samples[rows]

    return remembered


baseline = remembering(Algorithm.baseline)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Everything that a run logged: {name: {step: value}}, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events*"), key=os.path.getmtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update((event.step, event.value) for event in events.Scalars(name))
    return found


def fifth(logged: dict[str, list[float]], which: int) -> dict[str, float]:
    """Means of the first (0) or the last (-1) fifth of all values."""
    parts = {name: values[:: 1 if which == 0 else -1][: -(-len(values) // 5)] for name, values in logged.items()}
    return {name: sum(part) / len(part) for name, part in parts.items()}


def half_interval(runs: list[dict]) -> float:
    """Half the 95 % interval of the runs' mean gain, over prompts. Seeds share prompts and base, so that their gains
    are not independent: the mean of their half-widths, which the truth does not exceed."""
    bounds = [r["exact"]["all"]["gain_interval"] for r in runs]
    return sum(high - low for low, high in bounds) / 2 / len(runs)


def row(method: str, runs: list[dict]) -> tuple[float, str]:
    """The method's gain, and its line of the table, from its seeds' runs."""
    mean = lambda values: sum(values) / len(values)
    skill = lambda name, when: mean([r["exact"][name][when] for r in runs])
    gains = [r["exact"]["all"]["after"] - r["exact"]["all"]["before"] for r in runs]
    gain, half = mean(gains), half_interval(runs)

    def logged(name: str, form: str) -> str:
        values = [r[name] for r in runs if name in r]
        return format(mean(values), form) if values else "-"

    proxies = [r["train/reward"] for r in runs if r.get("train/reward", [None])[0] is not None]
    cells = [
        f"`{method}`",
        f"{skill('all', 'before'):.3f} -> {skill('all', 'after'):.3f}",
        f"{gain:+.3f} [{gain - half:+.3f}, {gain + half:+.3f}]",
        f"{min(gains):+.3f} .. {max(gains):+.3f} ({len(gains)})",
        *(f"{skill(s, 'after') - skill(s, 'before'):+.2f}" for s in SKILLS),
        " -> ".join(f"{mean(when):.2f}" for when in zip(*proxies)) or "-",
        logged("train/implicit_accuracy", ".2f"),
        logged("test/diversity", ".3f"),
        logged("test/drift", ".3f"),
        logged("fit_seconds", ".0f"),
        logged("batches", ".0f"),
        logged("perf/peak_memory_mb", ".0f"),
    ]
    return gain, f"| {' | '.join(cells)} |"


def table(records: dict, time: str) -> str:
    """The rows of one budget's runs, best first."""
    found = {m: list(seeds.values()) for m, seeds in records.items() if seeds}
    rows = [line for _, line in sorted((row(m, runs) for m, runs in found.items()), reverse=True)]
    runs = [r for several in found.values() for r in several]
    either = lambda values: " or ".join(str(v) for v in sorted(set(values)))
    cores, machine = either(r["cores"] for r in runs), either(r["machine"] for r in runs)
    prompts = either(r["exact"]["all"]["n"] for r in runs)
    heads = ["method", "exact accuracy", "gain, 95 % interval", "seeds: least .. most (n)", *SKILLS]
    heads += ["train reward", "implicit accuracy", "diversity", "drift", "seconds", "batches", "peak MB"]
    return (
        f"## {time} of training\n\n{prompts} held-out prompts; {cores} core(s), {machine}.\n\n"
        f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n" + "\n".join(rows) + "\n"
    )


def write(records: dict) -> None:
    """docs/results.md, of all that is recorded."""
    tables = [table(done, time) for time, done in records.items() if any(done.values())]
    TABLE.write_text(
        f"""# Results on Shapes

Written by `make results`. Every method starts from `checkpoints/shapes-sd` (or `shapes-flow`), trains for the table's
wall-clock ({SECONDS["preference"]} s for the preference family, {SAMPLING} s for the others), and draws one image for
each held-out prompt, with the same seeds before and after. The preference family and the reward-weighted one are
judged in 15 deterministic steps at guidance 3. Those that learn from trajectories of their own (d3po, spo, lpo,
dense_dpo) and the other families draw and are judged without guidance, in 10 stochastic steps; few-step methods (pso,
pso_offline, lasro) in their 4 steps, guided. Gains over bases that are drawn differently do not compare: guidance and
its sampler take `shapes-sd` from 0.39 to 0.53. Exact accuracy is the judge's. The interval is over prompts; seeds
share them and the base, so more seeds do not narrow it. Beside it is the least and the greatest gain of a seed.
Skills: gain. Train reward: what is trained on, over the first fifth of training -> over the last. Implicit accuracy:
on training data, over the last fifth. Diversity: mean distance of two samples' latents; drift: mean distance of a
sample's latents to the reference's on the same seed; both per dimension. Seconds: of fit, encoding included.
Batches: of training, to the last that was logged; the machine is not equally fast at all times, and runs from before
they were counted have none. Learning rates were chosen in trials of two to ten minutes, with another seed, on the
first 128 to 256 of these prompts, where a config does not say that its own is untried. Why some lose:
[what_loses.md](what_loses.md).

"""
        + "\n".join(tables)
    )
    print(TABLE.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["all"], help="names under configs/shapes, or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=int, help="of training (default: the family's)")
    parser.add_argument("--test_batches", type=int, help="of 32 held-out prompts each (default: all)")
    parser.add_argument("--again", action="store_true", help="run what is recorded, too")
    args = parser.parse_args()
    every = sorted(f.stem for f in CONFIGS.glob("*.yaml") if not f.stem.startswith("base_"))
    methods = every if args.methods == ["all"] else args.methods
    if unknown := set(methods) - set(every):
        parser.error(f"there is no configs/shapes/{sorted(unknown)[0]}.yaml; there are {', '.join(every)}.")
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    for seed in args.seeds:
        for method in methods:
            seconds = args.seconds or SECONDS.get(family_of(f"shapes/{method}"), SAMPLING)
            done = records.setdefault(f"{seconds} s", {}).setdefault(method, {})
            if args.again or str(seed) not in done:
                done[str(seed)] = run(method, seed, seconds, args.test_batches)
                RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    write(records)


if __name__ == "__main__":
    main()
