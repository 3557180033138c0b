"""Writes docs/results.md: every method of configs/shapes trained for the same time, several seeds, one table.

`python -m lit_align.results --methods dpo ipo --seeds 1 2 3`; a run that is done is not done again.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

from lit_align.paths import ROOT

CONFIGS, RUNS, TABLE = ROOT / "configs/shapes", Path("checkpoints/results"), ROOT / "docs/results.md"
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def run(method: str, seed: int, seconds: int, test_batches: int | None) -> None:
    """Trains a method for some seconds and tests it, unless that has been done."""
    folder = RUNS / f"{method}-{seconds}s" / str(seed)
    if (folder / "comparison.json").exists():
        return
    command = [sys.executable, "-m", "lit_align"]
    common = ["--config", f"shapes/{method}", "--config", "with/budget", "--trainer.default_root_dir", str(folder)]
    common += ["--seed_everything", str(seed), "--data.seed", str(seed)]
    minutes, rest = divmod(seconds, 60)
    budget = f"00:{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
    subprocess.run([*command, "fit", *common, "--trainer.max_time", budget], check=True)
    limit = ["--trainer.limit_test_batches", str(test_batches)] if test_batches else []
    subprocess.run([*command, "test", *common, *limit, "--ckpt_path", "last"], check=True)


def scalars(folder: Path) -> dict[str, float]:
    """The last value of everything that a run logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last = {}
    for file in sorted(folder.glob("events*"), key=os.path.getmtime):
        events = EventAccumulator(str(file)).Reload()
        last |= {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
    return last


def row(method: str, folders: list[Path]) -> tuple[float, str]:
    """The method's gain, and its line of the table, from its seeds' runs."""
    reports = [json.loads((f / "comparison.json").read_text())["exact"] for f in folders]
    logs = [scalars(f) for f in folders]
    mean = lambda values: sum(values) / len(values)
    skill = lambda name, when: mean([r[name][when] for r in reports])
    gains = [r["all"]["after"] - r["all"]["before"] for r in reports]
    errors = [(r["all"]["gain_interval"][1] - r["all"]["gain_interval"][0]) / 2 for r in reports]
    half = math.hypot(*errors) / len(errors)  # over prompts; the seeds' spread stands beside it
    gain = mean(gains)

    def logged(name: str, form: str) -> str:
        values = [log[name] for log in logs if name in log]
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
        f"{mean([json.loads((f / 'fit_seconds.json').read_text()) for f in folders]):.0f}",
        logged("perf/peak_memory_mb", ".0f"),
    ]
    return gain, f"| {' | '.join(cells)} |"


def write(seconds: int) -> None:
    """The table of all runs of this budget that are done."""
    found = {}
    for report in sorted(RUNS.glob(f"*-{seconds}s/*/comparison.json")):
        found.setdefault(report.parts[-3].removesuffix(f"-{seconds}s"), []).append(report.parent)
    rows = [line for _, line in sorted((row(m, folders) for m, folders in found.items()), reverse=True)]
    n = json.loads((next(iter(found.values()))[0] / "comparison.json").read_text())["exact"]["all"]["n"]
    heads = ["method", "exact accuracy", "gain, 95 % interval", "seeds: least .. most (n)", *SKILLS]
    heads += ["implicit accuracy", "diversity", "drift", "seconds", "peak MB"]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(
        f"""# Results on Shapes

Written by `make results`. Every method starts from `checkpoints/shapes-sd` (or `shapes-flow`), trains for {seconds} s
of wall-clock on {os.cpu_count()} cores ({platform.machine()}, {platform.system()}), and draws one image for each
of {n} held-out prompts, with the same seeds before and after. Exact accuracy is the judge's. The interval is over prompts,
pooled over seeds; beside it is the least and the greatest gain of a seed. Skills: gain. Implicit accuracy: on
training data, at the end.
Diversity: mean distance of two samples' latents; drift: mean distance of a sample's latents to the reference's on the
same seed; both per dimension. Seconds: of fit, encoding included.

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
    args = parser.parse_args()
    every = sorted(f.stem for f in CONFIGS.glob("*.yaml") if not f.stem.startswith("base_"))
    methods = every if args.methods == ["all"] else args.methods
    if unknown := set(methods) - set(every):
        parser.error(f"there is no configs/shapes/{sorted(unknown)[0]}.yaml; there are {', '.join(every)}.")
    for seed in args.seeds:
        for method in methods:
            run(method, seed, args.seconds, args.test_batches)
    write(args.seconds)


if __name__ == "__main__":
    main()
