"""Measures images: those of a folder, or those that a config samples first; alone, or beside another model's.

`python -m lit_align evaluate shapes/dpo --ckpt_path last --against shapes/dpo --config evaluate/shapes`
"""

import json
import os
import re
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from lit_align.callbacks import SampleWriter
from lit_align.callbacks.grid import grid, save_png, to_pil
from lit_align.data.batch import batch_of
from lit_align.data.tables import READERS, read_prompts
from lit_align.metrics.mean_reward import MeanReward
from lit_align.metrics.metric import ImageMetric, given
from lit_align.metrics.reference import read_image
from lit_align.metrics.win_rate import WinRate
from lit_align.paths import fetch, find
from lit_align.rewards.reward import Reward
from lit_align.tools.compare_page import page

SHEET = 24  # prompts on the contact sheet


def evaluate(
    what: str,
    metrics: list[ImageMetric],
    out: str | None = None,
    prompts: str | None = None,
    column: str = "prompt",
    split: str = "train",
    per_prompt: int = 1,
    limit: int | None = None,
    ckpt_path: str | None = None,
    against: str | None = None,
    against_ckpt_path: str | None = None,
    flags: list[str] | None = None,
    partial: bool = False,
    batch_size: int = 8,
    device: str = "auto",
    smoke: bool = False,
) -> None:
    """Measures the images of a folder or config: metrics, win rates against another, a contact sheet and a web page.

    A folder is one that `predict` wrote: images, and metadata.jsonl with their prompts. A config is sampled first, as
    `predict` samples it, from `prompts`; image k of prompt i has the seed i x per_prompt + k, whatever model it is of.
    `out` gets results.json, results.md, results.jsonl (each image), sheet.png, index.html, and the files of a
    benchmark's published format. With `against` the second folder or config is measured, too, and every reward among
    the metrics gives a win rate.

    Args:
        what: a folder of images, or a config: a recipe or the config.yaml of a run.
        metrics: what is measured; recipes of benchmarks are in configs/evaluate.
        out: the folder to write to (default: evaluate/ in the folder of images, or evaluations/<config>).
        prompts: a file, folder, hub id or https address of prompts; its further columns reach the metrics. Of a folder
            of images it may be left out if no metric asks for a column.
        column: of the prompts.
        split: of a folder or hub dataset of prompts.
        per_prompt: images of a prompt.
        limit: take the first prompts alone.
        ckpt_path: of a config: last, best, or a checkpoint; without it the base model.
        against: the other folder or config.
        against_ckpt_path: of the other config.
        flags: further flags for `predict`, such as --trainer.accelerator=cpu.
        partial: go on if a folder lacks images of some prompts.
        batch_size: images measured at once.
        device: where metrics run; auto: a GPU if there is one.
        smoke: tiny random weights, to try a command out.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if not metrics:
        raise ValueError("nothing to measure: give --metrics, or a recipe such as --config evaluate/geneval.")
    at = Path(out) if out else Path(what, "evaluate") if Path(what).is_dir() else Path("evaluations", named(what))
    at.mkdir(parents=True, exist_ok=True)
    table = read_table(prompts, column, split, limit, per_prompt)
    metrics = [metric.to(device) for metric in metrics]
    sides = []
    for name, checkpoint, folder in ((what, ckpt_path, "images"), (against, against_ckpt_path, "against")):
        if name is not None:
            place = (
                Path(name) if Path(name).is_dir() else sampled(name, checkpoint, table, at, folder, flags or [], smoke)
            )
            rows = images_of(place, table, partial)
            label = f"{name} ({checkpoint})" if checkpoint else str(name)
            sides.append({"name": label, "rows": rows} | measured(metrics, rows, batch_size, device))
    if len(sides) == 2:
        sides = paired(sides)
    write(at, sides, metrics)


def named(config: str) -> str:
    """A folder's name for a config."""
    path = Path(config)
    return "-".join(path.with_suffix("").parts[-3:] if path.name == "config.yaml" else path.with_suffix("").parts[-2:])


def read_table(prompts: str | None, column: str, split: str, limit: int | None, per_prompt: int) -> list[dict] | None:
    """The rows of a file of prompts, each `per_prompt` times, with the number of their image as `index`."""
    if not prompts:
        return None
    is_file = Path(prompts).suffix in READERS and not Path(find(prompts)).exists()
    rows = list(read_prompts(fetch(prompts) if is_file else prompts, column, split))[:limit]
    own = lambda row: {k: v for k, v in row.items() if k != "file"}
    if per_prompt == 1:
        return [own(row) for row in rows]
    return [own(row) | {"index": i * per_prompt + k} for i, row in enumerate(rows) for k in range(per_prompt)]


def sampled(
    config: str, ckpt_path: str | None, table: list[dict] | None, out: Path, folder: str, flags: list[str], smoke: bool
) -> Path:
    """Samples a config's images into out/<folder> by `predict`; without `prompts` from its own prompts."""
    from lit_align.cli import main

    words = ["predict", "--config", config] + (["--config", "smoke.yaml"] if smoke else [])
    if table is not None:
        file = out / "prompts.jsonl"
        cells = [{k.removeprefix("columns."): v for k, v in row.items() if k != "index"} for row in table]
        file.write_text("".join(json.dumps(row, default=refuse) + "\n" for row in cells))
        words += ["--data.predict_prompts", str(file.absolute())]
        for number, row in enumerate(table):
            row["index"] = number  # as in that file
    if smoke:
        words += ["--trainer.limit_predict_batches", "null"]
    words += ["--ckpt_path", ckpt_path] if ckpt_path else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        cli = main([*words, *flags])
    written = Path(next(c for c in cli.trainer.callbacks if isinstance(c, SampleWriter)).path)
    if not cli.trainer.is_global_zero:
        raise SystemExit(0)  # the other processes only sample
    place, lines = out / folder, []
    place.mkdir(exist_ok=True)
    for file in sorted(written.glob("metadata*.jsonl")):
        lines += file.read_text().splitlines()
    for name in {json.loads(line)["file_name"] for line in lines}:
        os.replace(written / name, place / name)
    (place / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return place


def refuse(value):
    raise ValueError(f"the prompts have a column with {type(value).__name__}, which JSON cannot hold: leave it out.")


def images_of(folder: Path, table: list[dict] | None, partial: bool) -> list[dict]:
    """A row for each image of a folder: {"file", "index", "prompt", "columns"}, in the order of their numbers."""
    files = sorted(folder.glob("metadata*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{folder} has no metadata.jsonl with file_name and prompt: give a folder that predict wrote.")
    found = {}
    for line in lines:
        number = re.findall(r"\d+", Path(line["file_name"]).stem)
        if table is not None and not number:
            raise ValueError(f"{line['file_name']} has no number, which says what row of --prompts it is of.")
        index = int(number[-1]) if number else len(found)
        found[index] = {"file": folder / line["file_name"], "index": index, "prompt": line["prompt"], "columns": {}}
    if table is None:
        return [found[index] for index in sorted(found)]
    wanted = {row["index"]: row for row in table}
    if missing := [index for index in wanted if index not in found]:
        if not partial or len(missing) == len(wanted):
            raise ValueError(
                f"{folder} lacks {len(missing)} of {len(wanted)} images, the first is number {missing[0]}: sample "
                "them, or set --partial true."
            )
        print(f"{len(missing)} of {len(wanted)} images are missing in {folder}; the others are measured")
    for index in sorted(set(wanted) & set(found)):
        if found[index]["prompt"] != wanted[index]["prompt"]:
            raise ValueError(
                f"image {index} of {folder} is of {found[index]['prompt']!r}, and the prompts have "
                f"{wanted[index]['prompt']!r} there: give the file that it was sampled from, and its --per_prompt."
            )
        cells = batch_of([wanted[index]])["columns"]
        found[index]["columns"] = {name: cell[0] for name, cell in cells.items()}
    return [found[index] for index in sorted(set(wanted) & set(found))]


def measured(metrics: list[ImageMetric], rows: list[dict], batch_size: int, device: str) -> dict:
    """{"metrics": {name: number}, "records": a dict for each image, "files": {name: content}}."""
    for metric in metrics:
        metric.reset()
    for start in tqdm(range(0, len(rows), batch_size), desc="evaluate", unit="batch"):
        some = rows[start : start + batch_size]
        images = [read_image(row["file"]) for row in some]
        for first, last in runs([image.shape for image in images]):
            part = some[first:last]
            columns = {name: [row["columns"][name] for row in part] for name in part[0]["columns"]}
            batch = {"prompt": [row["prompt"] for row in part], "columns": columns}
            x = torch.stack(images[first:last]).to(device)
            for metric in metrics:
                metric.update(x, batch["prompt"], **given(metric, batch))
    numbers: dict[str, float] = {}
    records, files = [{} for _ in rows], {}
    for metric in metrics:
        found = {name: float(value) for name, value in metric.compute().items()}
        if twice := sorted(found.keys() & numbers.keys()):
            raise ValueError(f"two metrics are called {twice[0]}: give one of them another name.")
        numbers |= found
        for record, own in zip(records, metric.records()):
            record |= own
        named = [{"filename": row["file"].name, "prompt": row["prompt"]} for row in rows]
        files |= metric.files([row | own for row, own in zip(named, metric.records())])
    return {"metrics": numbers, "records": records, "files": files, "truncated": truncated(metrics)}


def truncated(metrics: list[ImageMetric]) -> dict[str, int]:
    """Reward -> the number of prompts whose end it has not read so far."""
    found = [part for metric in metrics for part in metric.modules() if isinstance(part, Reward)]
    return {part.name: part.truncated for part in found if part.truncated}


def runs(values: list) -> list[tuple[int, int]]:
    """The stretches (first, end) of equal neighbours."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)]))


def paired(sides: list[dict]) -> list[dict]:
    """Both sides reduced to the images that both have, for the page and the win rates. ValueError if their prompts
    differ."""
    by_index = [{row["index"]: (row, record) for row, record in zip(side["rows"], side["records"])} for side in sides]
    common = sorted(by_index[0].keys() & by_index[1].keys())
    wrong = [i for i in common if by_index[0][i][0]["prompt"] != by_index[1][i][0]["prompt"]]
    if not common or wrong:
        what = f"image {wrong[0]} is of another prompt" if wrong else "no number is the same"
        raise ValueError(f"the two sets of images are not of the same prompts ({what}): sample both from one file.")
    for side, mine in zip(sides, by_index):
        side["rows"], side["records"] = ([mine[i][k] for i in common] for k in (0, 1))
    return sides


def win_rates(sides: list[dict], metrics: list[ImageMetric]) -> dict[str, dict[str, float]]:
    """For each reward: the share of prompts that the first side wins, its interval, the number of prompts."""
    found = {}
    for metric in metrics:
        if isinstance(metric, MeanReward):
            scores = [torch.tensor([record[metric.name] for record in side["records"]]) for side in sides]
            rate = WinRate()
            rate.update(*scores, [row["prompt"] for row in sides[0]["rows"]])
            found[metric.name] = {k.removeprefix("win_rate/"): float(v) for k, v in rate.compute().items()}
    return found


def write(out: Path, sides: list[dict], metrics: list[ImageMetric]) -> None:
    """Writes all files, and prints the table."""
    rates = win_rates(sides, metrics) if len(sides) == 2 else {}
    counts = {"images": len(sides[0]["rows"]), "prompts": len({row["prompt"] for row in sides[0]["rows"]})}
    numbers = [{"name": side["name"], "metrics": side["metrics"]} for side in sides]
    content = counts | {"sides": numbers, "win_rate": rates, "truncated": sides[-1]["truncated"]}
    (out / "results.json").write_text(json.dumps(content, indent=1))
    text = markdown(counts, sides, rates)
    (out / "results.md").write_text(text)
    with open(out / "results.jsonl", "w") as file:
        for place, row in enumerate(sides[0]["rows"]):
            line = {"index": row["index"], "prompt": row["prompt"], "scores": [s["records"][place] for s in sides]}
            file.write(json.dumps(line) + "\n")
    for number, side in enumerate(sides):
        for name, body in side["files"].items():
            (out / (name if not number else f"against_{name}")).write_text(body)
    sheet(out / "sheet.png", sides)
    (out / "index.html").write_text(page(sides, text))
    print(text)
    for name, count in sides[-1]["truncated"].items():
        print(f"{name} did not read the end of {count} of {counts['images'] * len(sides)} prompts: they are too long")
    print(f"results.json, results.md, results.jsonl, sheet.png and index.html are in {out}")


def markdown(counts: dict, sides: list[dict], rates: dict) -> str:
    """The tables of the results."""
    heads = ["metric", *(side["name"] for side in sides)]
    lines = [heads, ["---"] * len(heads)]
    lines += [
        [name, *(f"{side['metrics'].get(name, float('nan')):.4g}" for side in sides)] for name in sides[0]["metrics"]
    ]
    text = f"{counts['images']} images of {counts['prompts']} prompts\n\n"
    text += "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if rates:
        text += f"\nWin rate of {sides[0]['name']}, ties half, median over a prompt's images\n\n"
        text += "| reward | win rate | 95 % interval | prompts |\n| --- | --- | --- | --- |\n"
        for name, r in rates.items():
            text += f"| {name} | {r['win_rate']:.3f} | [{r['low']:.3f}, {r['high']:.3f}] | {r['prompts']:.0f} |\n"
    return text


def sheet(path: Path, sides: list[dict]) -> None:
    """The contact sheet of the first prompts."""
    some = range(min(SHEET, len(sides[0]["rows"])))
    pictures = [[to_pil(read_image(side["rows"][i]["file"], 256)) for side in sides] for i in some]
    captions = [sides[0]["rows"][i]["prompt"] for i in some]
    heads = ["this", "against"] if len(sides) == 2 else None
    save_png(grid(pictures, captions, None, heads), str(path))
