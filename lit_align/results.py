"""Writes docs/results.md: every method of configs/shapes trained for the same time, several seeds, one table.

`python -m lit_align.results --methods dpo ipo --seeds 1 2 3`. What a run measured is kept in docs/results.json; a run
that stands there is not done again.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from lit_align.paths import ROOT

CONFIGS, RUNS = ROOT / "configs/shapes", Path("checkpoints/results")
RECORDS, TABLE = ROOT / "docs/results.json", ROOT / "docs/results.md"
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
LOGGED = ("train/implicit_accuracy", "test/diversity", "test/drift", "perf/peak_memory_mb")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run(
    method: str, seed: int, seconds: int, test_batches: int | None, runs: Path = RUNS, extra: list[str] | None = None
) -> dict:
    """Trains a method for some seconds, tests it, and returns what was measured. The run's folder is emptied before.
    `extra`: flags for both."""
    folder = runs / f"{method}-{seconds}s" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "lit_align"]
    common = ["--config", f"shapes/{method}", "--config", "with/budget", "--trainer.default_root_dir", str(folder)]
    common += ["--seed_everything", str(seed), "--data.seed", str(seed), *(extra or [])]
    minutes, rest = divmod(seconds, 60)
    budget = f"00:{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
    subprocess.run([*command, "fit", *common, "--trainer.max_time", budget], check=True)
    alike = ["--data.test_prompts", "configs/shapes/prompts/test.jsonl", "--model.rewards", '["ShapesJudge"]']
    limit = ["--trainer.limit_test_batches", str(test_batches)] if test_batches else []
    subprocess.run([*command, "test", *common, *alike, *limit, "--ckpt_path", "last"], check=True)
    logged = scalars(folder)
    return {
        "exact": json.loads((folder / "comparison.json").read_text())["exact"],
        "fit_seconds": json.loads((folder / "fit_seconds.json").read_text()),
        "cores": cores(),
        "machine": f"{platform.machine()}, {platform.system()}",
    } | {name: logged[name] for name in LOGGED if name in logged}


def scalars(folder: Path) -> dict[str, float]:
    """The last value of everything that a run logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last = {}
    for file in sorted(folder.glob("events*"), key=os.path.getmtime):
        events = EventAccumulator(str(file)).Reload()
        last |= {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
    return last


def half_interval(runs: list[dict]) -> float:
    """Half the 95 % interval of the runs' mean gain: over prompts, pooled over seeds."""
    bounds = [r["exact"]["all"]["gain_interval"] for r in runs]
    return math.hypot(*((high - low) / 2 for low, high in bounds)) / len(runs)


def row(method: str, runs: list[dict]) -> tuple[float, str]:
    """The method's gain, and its line of the table, from its seeds' runs."""
    mean = lambda values: sum(values) / len(values)
    skill = lambda name, when: mean([r["exact"][name][when] for r in runs])
    gains = [r["exact"]["all"]["after"] - r["exact"]["all"]["before"] for r in runs]
    gain, half = mean(gains), half_interval(runs)

    def logged(name: str, form: str) -> str:
        values = [r[name] for r in runs if name in r]
        return format(mean(values), form) if values else "-"

    cells = [
        f"`{method}`",
        f"{skill('all', 'before'):.3f} -> {skill('all', 'after'):.3f}",
        f"{gain:+.3f} [{gain - half:+.3f}, {gain + half:+.3f}]",
        f"{min(gains):+.3f} .. {max(gains):+.3f} ({len(gains)})",
        *(f"{skill(s, 'after') - skill(s, 'before'):+.2f}" for s in SKILLS),
        logged("train/implicit_accuracy", ".2f"),
        logged("test/diversity", ".3f"),
        logged("test/drift", ".3f"),
        logged("fit_seconds", ".0f"),
        logged("perf/peak_memory_mb", ".0f"),
    ]
    return gain, f"| {' | '.join(cells)} |"


def write(records: dict, seconds: int) -> None:
    """The table of all runs of this budget that are recorded."""
    found = {m: list(seeds.values()) for m, seeds in records.items()}
    rows = [line for _, line in sorted((row(m, runs) for m, runs in found.items()), reverse=True)]
    runs = [r for several in found.values() for r in several]
    either = lambda values: " or ".join(str(v) for v in sorted(set(values)))
    cores, machine = either(r["cores"] for r in runs), either(r["machine"] for r in runs)
    prompts = either(r["exact"]["all"]["n"] for r in runs)
    heads = ["method", "exact accuracy", "gain, 95 % interval", "seeds: least .. most (n)", *SKILLS]
    heads += ["implicit accuracy", "diversity", "drift", "seconds", "peak MB"]
    TABLE.write_text(
        f"""# Results on Shapes

Written by `make results`. Every method starts from `checkpoints/shapes-sd` (or `shapes-flow`), trains for {seconds} s
of wall-clock on {cores} core(s) ({machine}), and draws one image for each of {prompts} held-out prompts, with the
same seeds before and after. Exact accuracy is the judge's. The interval is over prompts, pooled over seeds; beside it
is the least and the greatest gain of a seed. Skills: gain. Implicit accuracy: on training data, at the end. Diversity:
mean distance of two samples' latents; drift: mean distance of a sample's latents to the reference's on the same seed;
both per dimension. Seconds: of fit, encoding included. Why some lose: [what_loses.md](what_loses.md).

| {" | ".join(heads)} |
|{"---|" * len(heads)}
"""
        + "\n".join(rows)
        + "\n"
    )
    print(TABLE.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["all"], help="names under configs/shapes, or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=int, default=120, help="of training")
    parser.add_argument("--test_batches", type=int, help="of 32 held-out prompts each (default: all)")
    parser.add_argument("--again", action="store_true", help="run what is recorded, too")
    args = parser.parse_args()
    every = sorted(f.stem for f in CONFIGS.glob("*.yaml") if not f.stem.startswith("base_"))
    methods = every if args.methods == ["all"] else args.methods
    if unknown := set(methods) - set(every):
        parser.error(f"there is no configs/shapes/{sorted(unknown)[0]}.yaml; there are {', '.join(every)}.")
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    done = records.setdefault(f"{args.seconds} s", {})
    for seed in args.seeds:
        for method in methods:
            if args.again or str(seed) not in done.get(method, {}):
                done.setdefault(method, {})[str(seed)] = run(method, seed, args.seconds, args.test_batches)
                RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    write(done, args.seconds)


if __name__ == "__main__":
    main()
