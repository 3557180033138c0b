"""Writes docs/results.md: every method of configs/shapes, trained for its config's `budget`, over several seeds.

`python -m lit_align.studies.results --methods dpo ipo --seeds 1 2 3`. Measurements are kept in docs/results.json, and
runs that it holds are not repeated. Several processes can share the work: each takes runs that no other is at.
"""

import argparse
from pathlib import Path
from statistics import mean

from lit_align.configs import CONFIGS, load_config
from lit_align.diffusion.budget import COSTS as CALLS
from lit_align.paths import ROOT
from lit_align.shapes import WORLD
from lit_align.studies.runs import (
    add_record,
    alone,
    alternatives,
    fit_and_test,
    half_interval,
    markdown,
    read_records,
    steer_and_test,
    world_of,
)

RUNS, RECORDS, PAGE = Path("checkpoints/results"), ROOT / "docs/results.json", ROOT / "docs/results.md"
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HEADS = ["method", "exact accuracy", "gain, 95 % interval", "seeds: least .. most (n)", *SKILLS, "train reward"]
HEADS += ["implicit accuracy", "diversity", "drift", "training seconds", "batches", "peak MB"]
TRAINED = ("train reward", "implicit accuracy", "training seconds", "batches", "peak MB")  # of no use for steering
COSTS = ["network forwards", "backwards", "decodes", "reward calls"]  # per prompt
INTRO = """# Results on Shapes

Written by `make results`. Each method starts from `checkpoints/shapes-sd` or `checkpoints/shapes-flow` and trains for
some seconds of CPU time. The trained and the base model then draw one image for each held-out prompt, with the same
seeds. Each config names the training time of its method as `budget`. A row that was measured at another time is marked
with † and listed under its table; compare it only with rows of the same training seconds.

Methods are sampled in three ways, and gains compare only within one of them, because guidance and sampler alone take
`shapes-sd` from 0.46 to 0.53:

- methods on pairs or lists, `online_dpo`, `nash_md`, `spin` and the reward-weighted methods: 15 deterministic steps at
  guidance 3;
- `d3po`, `spo`, `lpo`, `dense_dpo`, and the policy-gradient, forward-process and reward-gradient methods: 10 stochastic
  steps without guidance;
- `pso`, `pso_offline` and `lasro`: 4 steps with guidance.

| column | meaning |
|---|---|
| exact accuracy | share of images that the exact judge calls right, base model -> trained model, mean over seeds |
| gain | difference of the two and its 95 % interval over prompts, which more seeds on the same prompts do not narrow |
| seeds | smallest and largest gain of a seed (number of seeds) |
| single_object .. color_attr | gain on the prompts of one skill |
| train reward | mean reward that the method trains on, first fifth -> last fifth of training |
| implicit accuracy | share of training pairs that the model ranks correctly, last fifth of training |
| diversity | mean distance between the latents of two samples, per dimension |
| drift | mean distance between a sample's latents and the base model's on the same seed, per dimension |
| training seconds | CPU time of `fit`, encoding included; in world 1 wall-clock time |
| batches | training batches up to the last logged one; "-": not counted; the machine's speed varied |
| peak MB | peak memory of the process |

Learning rates were chosen in trials of two to ten minutes on the first 128 to 256 of these prompts with another seed,
except where a config says that its rate is untuned. [what_loses.md](what_loses.md) says why some methods lose.
"""
EARLIER = """# Measured in an earlier world

The rows below were measured with another judge, other base models and other data, and are to be run again. They do not
compare with the rows above. World 1: the judge took an object as small below a radius of 9 pixels and as large above,
and accepted relations from a component of 0.5 on and colours half way to the next.
"""


def budgets() -> dict[str, int]:
    """Training seconds of every method: the configs of configs/shapes that name a `budget`, and 0 for Steered."""
    found = {path.stem: load_config(str(path)) for path in sorted((CONFIGS / "shapes").glob("*.yaml"))}
    given = {name: config.get("budget", 0) for name, config in found.items()}
    return {name: s for name, s in given.items() if s or found[name]["model"]["class_path"] == "Steered"}


def row(method: str, runs: list[dict]) -> tuple[float, list[str]]:
    """The mean gain of a method's runs, one for each seed, and the cells of its row."""
    skill = lambda name, when: mean(r["exact"][name][when] for r in runs)
    gains = [r["exact"]["all"]["after"] - r["exact"]["all"]["before"] for r in runs]
    gain, half = mean(gains), half_interval(runs)

    def logged(name: str, form: str) -> str:
        values = [r[name] for r in runs if name in r]
        return format(mean(values), form) if values else "-"

    rewards = [r["train/reward"] for r in runs if r.get("train/reward", [None])[0] is not None]
    return gain, [
        method,
        f"{skill('all', 'before'):.3f} -> {skill('all', 'after'):.3f}",
        f"{gain:+.3f} [{gain - half:+.3f}, {gain + half:+.3f}]",
        f"{min(gains):+.3f} .. {max(gains):+.3f} ({len(gains)})",
        *(f"{skill(s, 'after') - skill(s, 'before'):+.2f}" for s in SKILLS),
        " -> ".join(f"{mean(when):.2f}" for when in zip(*rewards)) or "-",
        logged("train/implicit_accuracy", ".2f"),
        logged("test/diversity", ".3f"),
        logged("test/drift", ".3f"),
        logged("perf/cpu_seconds" if any("perf/cpu_seconds" in r for r in runs) else "fit_seconds", ".0f"),
        logged("batches", ".0f"),
        logged("perf/peak_memory_mb", ".0f"),
    ]


def steered(cells: list[str], runs: list[dict]) -> list[str]:
    """The cells of a row of steering: those of training give way to the cost."""
    kept = [cell for head, cell in zip(HEADS, cells) if head not in TRAINED]
    return kept + [f"{mean(r.get(f'test/cost/{name}', 0) for r in runs):.0f}" for name in CALLS]


def notes(records: dict, time: str, budget: dict[str, int]) -> str:
    """The methods measured at `time` that have another budget, a line for each budget."""
    lines: dict[str, list[str]] = {}
    for method in sorted(m for m in records[time] if f"{budget[m]} s" != time):
        due = f"{budget[method]} s"
        again = f"compare its row at {due}" if records.get(due, {}).get(method) else "to be run again"
        lines.setdefault(f"measured at {time}; its budget is {due}: {again}", []).append(f"`{method}`")
    return "".join(f"\n† {', '.join(methods)}: {what}.\n" for what, methods in lines.items())


def section(records: dict, time: str, budget: dict[str, int], world: int) -> str:
    """The table of the runs measured at `time`, largest gain first, and its notes."""
    found = {m: list(seeds.values()) for m, seeds in records[time].items() if seeds}
    name = lambda m: f"`{m}`" + ("" if f"{budget[m]} s" == time else " †")
    rows = sorted(((*row(name(m), runs), runs) for m, runs in found.items()), key=lambda r: r[:2], reverse=True)
    runs = [r for several in found.values() for r in several]
    prompts = alternatives(r["exact"]["all"]["n"] for r in runs)
    machine = f"{alternatives(r['cores'] for r in runs)} core(s), {alternatives(r['machine'] for r in runs)}"
    earlier = "" if world == WORLD else f"World {world}: "
    what = "Steering, without training" if time == "0 s" else f"{time} of training"
    head = f"## {earlier}{what}\n\n{prompts} held-out prompts; {machine}.\n\n"
    if time == "0 s":
        heads = [h for h in HEADS if h not in TRAINED] + COSTS
        return head + markdown(heads, [steered(cells, runs) for _, cells, runs in rows])
    return head + markdown(HEADS, [cells for _, cells, _ in rows]) + notes(records, time, budget)


def of_world(records: dict, world: int) -> dict:
    """The records of one world, by time in seconds."""
    found: dict = {}
    for time in sorted(records, key=lambda t: int(t.split()[0])):
        for method, seeds in records[time].items():
            if runs := {seed: run for seed, run in seeds.items() if world_of(run) == world}:
                found.setdefault(time, {})[method] = runs
    return found


def write(records: dict) -> None:
    """Writes the page from the records {time: {method: {seed: run}}}, those of earlier worlds at the end."""
    budget, parts = budgets(), [INTRO]
    if gone := {m for methods in records.values() for m, seeds in methods.items() if seeds} - set(budget):
        raise SystemExit(f"{RECORDS} has {sorted(gone)[0]}, but no configs/shapes/{sorted(gone)[0]}.yaml has a budget.")
    for world in range(WORLD, 0, -1):
        found = of_world(records, world)
        parts += [EARLIER] if found and world < WORLD and EARLIER not in parts else []
        parts += [section(found, time, budget, world) for time in found]
    PAGE.write_text("\n".join(parts))
    print(PAGE.read_text())


def measured(method: str, seed: int, seconds: int, test_batches: int | None) -> dict:
    """What one run gives; 0 seconds: of steering."""
    if seconds:
        return fit_and_test(method, seed, seconds, test_batches, RUNS)
    return steer_and_test(method, seed, test_batches, RUNS)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.studies.results", description=__doc__)
    parser.add_argument("--methods", nargs="*", default=["all"], help="configs of configs/shapes; none: write the page")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=int, help="training time in place of each config's budget")
    parser.add_argument("--test_batches", type=int, help="batches of 32 held-out prompts (default: all)")
    parser.add_argument("--again", action="store_true", help="repeat runs that are recorded")
    args = parser.parse_args(args)
    budget = budgets()
    methods = list(budget) if args.methods == ["all"] else args.methods
    if unknown := set(methods) - set(budget):
        parser.error(f"no configs/shapes/{sorted(unknown)[0]}.yaml has a budget; there are {', '.join(budget)}.")
    for seed in args.seeds:
        for method in methods:
            seconds = budget[method] and (args.seconds or budget[method])
            keys = (f"{seconds} s", method, str(seed))
            with alone(RUNS / "claims" / "-".join(keys), wait=False) as mine:
                done = read_records(RECORDS).get(keys[0], {}).get(method, {}).get(keys[2], {})
                if mine and (args.again or world_of(done) != WORLD):
                    add_record(RECORDS, keys, measured(method, seed, seconds, args.test_batches))
    write(read_records(RECORDS))


if __name__ == "__main__":
    main()
