"""What the studies share: training and testing a config, reading its logs, JSON records, Markdown tables."""

import fcntl
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

from lit_align.diffusion.budget import COSTS
from lit_align.shapes import WORLD

LOGGED = ("train/implicit_accuracy", "test/diversity", "test/drift", "perf/peak_memory_mb")
LOGGED += ("perf/cpu_seconds", *(f"test/cost/{name}" for name in COSTS))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def lit_align(command: str, *flags: str) -> None:
    """Runs `python -m lit_align command flags` in a process of its own. Exits if it fails."""
    words = [sys.executable, "-m", "lit_align", command, *flags]
    if code := subprocess.run(words).returncode:
        raise SystemExit(f"the study stopped, its records are kept: exit code {code} of {shlex.join(words)}")


def cpu_time(seconds: int) -> list[str]:
    """The flags that end training after some seconds of CPU time."""
    return ["--trainer.callbacks+=CPUTime", "--trainer.callbacks.seconds", str(seconds)]


def fit_and_test(
    method: str, seed: int, seconds: int, test_batches: int | None, runs: Path, flags: Iterable[str] = ()
) -> dict:
    """Trains configs/shapes/<method>.yaml for some seconds of CPU time in an emptied folder below `runs`, tests it
    against its base model by the exact judge, and returns the measurements. `flags` go to both commands;
    `test_batches`: number of test batches, None for all."""
    folder = runs / f"{method}-{seconds}s" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    common = ["--config", f"shapes/{method}", "--config", "with/budget", "--trainer.default_root_dir", str(folder)]
    common += ["--seed_everything", str(seed), "--data.seed", str(seed), *flags]
    common += cpu_time(seconds)
    lit_align("fit", *common)
    judged = ["--data.test_prompts", "configs/shapes/prompts/test.jsonl", "--model.rewards", '["ShapesJudge"]']
    limit = ["--trainer.limit_test_batches", str(test_batches)] if test_batches else []
    lit_align("test", *common, *judged, *limit, "--ckpt_path", "last")
    return measurements(folder)


def steer_and_test(method: str, seed: int, test_batches: int | None, runs: Path, flags: Iterable[str] = ()) -> dict:
    """Tests configs/shapes/<method>.yaml, of Steered, against the same sampler without steering, by the exact judge
    first, and returns the measurements, cost per prompt included."""
    folder = runs / method / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    limit = ["--trainer.limit_test_batches", str(test_batches)] if test_batches else []
    lit_align("test", "--config", f"shapes/{method}", "--trainer.default_root_dir", str(folder),
              "--seed_everything", str(seed), *limit, *flags)  # fmt: skip
    return measurements(folder)


def measurements(folder: Path) -> dict:
    """What a run's folder says: accuracy before and after, seconds, batches, machine, logged values; and the world's
    version."""
    found, timed = scalars(folder), folder / "fit_seconds.json"
    logged = {name: list(values.values()) for name, values in found.items()}
    first, last = fifth(logged, 0), fifth(logged, -1)
    last |= {
        name: max(values) for name, values in logged.items() if name in ("perf/peak_memory_mb", "perf/cpu_seconds")
    }
    return {
        "world": WORLD,
        "exact": json.loads((folder / "comparison.json").read_text())["exact"],
        "fit_seconds": json.loads(timed.read_text()) if timed.exists() else 0.0,
        "batches": 1 + max((max(steps) for name, steps in found.items() if name.startswith("train/")), default=-1),
        "cores": cores(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "train/reward": [first.get("train/reward"), last.get("train/reward")],
        **{name: last[name] for name in LOGGED if name in last},
    }


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar in a run's TensorBoard logs: {name: {step: value}}, in order of steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events*"), key=os.path.getmtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update((event.step, event.value) for event in events.Scalars(name))
    return found


def fifth(logged: dict[str, list[float]], which: int) -> dict[str, float]:
    """The mean of the first (0) or the last (-1) fifth of each list."""
    parts = {name: values[:: 1 if which == 0 else -1][: -(-len(values) // 5)] for name, values in logged.items()}
    return {name: sum(part) / len(part) for name, part in parts.items()}


def world_of(run: dict) -> int:
    """The version of the world in which a run was measured; the records of version 1 do not name it."""
    return run.get("world", 1)


def earlier(world: int) -> str:
    """The sentence that marks figures of an earlier world; "" for the present one."""
    if world == WORLD:
        return ""
    return f"Measured in world {world}, with another judge, base model and data (see [results.md](results.md)).\n\n"


def half_interval(runs: Iterable[dict]) -> float:
    """Half-width of the 95 % interval over prompts of the runs' mean gain. Runs share prompts and base model, so their
    gains are not independent; the mean of their half-widths is an upper bound."""
    return mean((high - low) / 2 for low, high in (r["exact"]["all"]["gain_interval"] for r in runs))


def alternatives(values: Iterable) -> str:
    """The different values, sorted: "1 or 2"."""
    return " or ".join(str(value) for value in sorted(set(values)))


def markdown(heads: list, rows: Iterable[Iterable]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def read_records(path: Path) -> dict:
    """A study's records; empty if there are none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_records(path: Path, records: dict) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    os.replace(part, path)


@contextmanager
def alone(folder: Path, wait: bool = True):
    """Yields True once this process is the only one inside for a folder; without `wait`, False if another one is."""
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(place)


def add_record(path: Path, keys: tuple[str, ...], record: dict) -> None:
    """Writes one record under some keys, among those that other processes have written meanwhile."""
    with alone(path.parent):
        records = place = read_records(path)
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = record
        write_records(path, records)
