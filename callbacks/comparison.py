"""Before and after: a test's figures and pictures."""

import json
import math
import os
import time

import lightning as L
import torch
from lit_align.callbacks.grid import animate, grid, save_png, strip, to_pictures
from torch import Tensor

NOTHING = "test sampled nothing: there was no batch of test prompts."  # Lightning calls no hook of an empty test
Z = 1.96  # two-sided 95 % of a normal


def interval(x: Tensor) -> tuple[float, float] | None:
    """95 % interval of the mean of x (N,), normal approximation; None of one value."""
    if len(x) == 1:
        return None
    half = Z * x.double().std().item() / math.sqrt(len(x))
    return x.double().mean().item() - half, x.double().mean().item() + half


def bracket(bounds: tuple[float, float] | None, sign: str = "+") -> str:
    return f"[{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]" if bounds else "unknown"


class Comparison(L.Callback):
    """Compares the samples of `test` with the reference's on the same prompts and seeds.

    Prints a table of every score (overall and per skill, before -> after) and the first score's win rate, and writes
    `comparison.json` with all of it and `comparison.png`, a contact sheet of pairs, those first whose first score
    changed; of a video it shows three frames, and `comparison.gif` plays before and after side by side. Without a
    reward there is the sheet alone; without a reference the sheet shows the samples alone. The last line says so.

    Args:
        pairs: how many pairs of pictures.
    """

    def __init__(self, pairs: int = 24):
        self.pairs, self.last_line = pairs, NOTHING

    def on_test_start(self, trainer, module) -> None:
        self.rows, self.start = [], time.time()

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if not isinstance(outputs, dict) or "image" not in outputs:  # of a module that returns no samples
            return
        compared, self.fps = "reference_image" in outputs, outputs.get("fps")
        skills = outputs.get("columns", {}).get("skill", [None] * len(outputs["prompt"]))
        for i, prompt in enumerate(outputs["prompt"]):
            images = [outputs[key][i] for key in (("reference_image", "image") if compared else ("image",))]
            self.rows.append(
                {
                    "index": outputs["index"][i],
                    "prompt": prompt,
                    "skill": "" if skills[i] is None else str(skills[i]),
                    "before": {k: float(v[i]) for k, v in outputs["reference_scores"].items()} if compared else None,
                    "after": {k: float(v[i]) for k, v in outputs["scores"].items()},
                    "images": [to_pictures(x, 128, 256) for x in images] if len(self.rows) < 8 * self.pairs else [],
                }
            )

    def on_test_end(self, trainer, module) -> None:
        rows = self.rows
        if trainer.world_size > 1:
            gathered = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = list({row["index"]: row for part in gathered for row in part}.values())
        if not trainer.is_global_zero or not rows:
            return
        self.write(sorted(rows, key=lambda row: row["index"]), trainer.default_root_dir, type(module).__name__)

    def write(self, rows: list[dict], root: str, method: str) -> None:
        """Writes figures and sheet, prints the tables and sets the last line."""
        compared = rows[0]["before"] is not None
        report = {name: self.figures(rows, name) for name in rows[0]["after"]} if compared else {}
        os.makedirs(root, exist_ok=True)
        with open(os.path.join(root, "comparison.json"), "w") as file:
            json.dump(report, file, indent=1)
        path = os.path.join(root, "comparison.png")
        self.sheet(rows, next(iter(report), None), path)
        for number, (name, figures) in enumerate(report.items()):
            self.show(name, figures, win_rate=number == 0)
        print(
            f"same prompts and seeds, before and after: {path}" if compared else f"samples of the test prompts: {path}"
        )
        if not compared:
            self.last_line = f"{method} has no fixed reference to compare with: the sheet shows the samples alone."
            return
        if not report:
            self.last_line = "there is no reward to compare by: name one in --model.rewards for figures and a win rate."
            return
        name, all_rows = next((name, figures["all"]) for name, figures in report.items())
        took = time.time() - self.start + self.fit_seconds(root)
        label = "exact accuracy" if name == "exact" else f"mean {name}"
        self.last_line = (
            f"{label} {all_rows['before']:.3f} -> {all_rows['after']:.3f}, "
            f"gain 95% CI {bracket(all_rows['gain_interval'])}, {took:.0f} s"
        )

    def teardown(self, trainer, module, stage: str) -> None:
        """Prints the result last, after Lightning's own table."""
        if stage == "test" and trainer.is_global_zero:
            if bar := trainer.progress_bar_callback:  # it draws itself once more when it ends: before the result
                bar.teardown(trainer, module, stage)
            print(self.last_line)
            self.last_line = NOTHING

    @staticmethod
    def fit_seconds(root: str) -> float:
        """How long the fit that made the weights took, with what it resumed, where it left word."""
        path = os.path.join(root, "fit_seconds.json")
        return json.load(open(path)) if os.path.exists(path) else 0.0

    def on_fit_start(self, trainer, module) -> None:
        self.start = time.time() - (self.fit_seconds(trainer.default_root_dir) if trainer.ckpt_path else 0.0)

    def on_fit_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            os.makedirs(trainer.default_root_dir, exist_ok=True)
            with open(os.path.join(trainer.default_root_dir, "fit_seconds.json"), "w") as file:
                json.dump(time.time() - self.start, file)

    @staticmethod
    def figures(rows: list[dict], name: str) -> dict:
        """Of one score: for all rows and each skill n, before, after, the 95 % interval of the gain, and the win
        rate."""
        groups = {"all": rows} | {
            s: [r for r in rows if r["skill"] == s] for s in sorted({r["skill"] for r in rows}) if s
        }
        out = {}
        for group, members in groups.items():
            before, after = (torch.tensor([r[when][name] for r in members]) for when in ("before", "after"))
            wins = (after > before).double() + 0.5 * (after == before).double()
            out[group] = {
                "n": len(members),
                "before": before.mean().item(),
                "after": after.mean().item(),
                "gain_interval": interval(after - before),
                "win_rate": wins.mean().item(),
                "win_rate_interval": interval(wins),
            }
        return out

    @staticmethod
    def show(name: str, figures: dict, win_rate: bool) -> None:
        print(f"\n{name:<16}{'n':>6}{'before':>10}{'after':>10}{'gain':>10}   95% interval")
        for group, f in figures.items():
            gain = f["after"] - f["before"]
            bounds = bracket(f["gain_interval"])
            print(f"{group:<16}{f['n']:>6}{f['before']:>10.3f}{f['after']:>10.3f}{gain:>+10.3f}   {bounds}")
        if win_rate:
            bounds = bracket(figures["all"]["win_rate_interval"], "")
            print(f"win rate against the reference, ties half: {figures['all']['win_rate']:.3f} {bounds}")

    def sheet(self, rows: list[dict], name: str | None, path: str) -> None:
        """Writes the contact sheet; `name` is the score that orders, captions and frames the cells."""
        shown, colors = [row for row in rows if row["images"]], None
        if name:
            gain = lambda row: row["after"][name] - row["before"][name]
            shown.sort(key=lambda row: gain(row) == 0)  # stable: those that changed come first
            colors = ["green" if gain(r) > 0 else "red" if gain(r) < 0 else "lightgray" for r in shown[: self.pairs]]
        shown = shown[: self.pairs]
        score = lambda row: f" | {name} {row['before'][name]:.3g} -> {row['after'][name]:.3g}" if name else ""
        captions = [row["prompt"] + score(row) for row in shown]
        films = [row["images"] for row in shown]  # of each row the film before and after; an image is a film of one
        heads = ["before", "after"] if len(films[0]) == 2 else None
        if len(films[0][0]) > 1:
            animate(films, captions, path.replace(".png", ".gif"), self.fps, colors, heads)
        strips = [[strip(film, 3) for film in row] for row in films]
        heads = heads and [head for head in heads for _ in strips[0][0]]
        save_png(grid([sum(row, []) for row in strips], captions, colors, heads), path)
