"""What a training pair costs under each preference method of configs/shapes, relative to DiffusionDPO.

`python tests/benchmarks/preference_steps.py [--methods dpo kto] [--pairs 16] [--repeats 5] [--write]`

The command line builds each method from its config. Offline methods then train on one cached batch; methods that
learn from their own samples sample first, and this time is reported apart. All methods take turns in one process;
the results are medians over the turns. A pair is two images or two trajectories. The expected cost counts denoiser
forwards: 3 for an image with gradient (the backward pass costs two forwards), 1 for an image without.
`--write` writes docs/speed.md.
"""

import argparse
import logging
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import lightning as L
import torch
from torch.utils.data import DataLoader

from lit_align.algorithms.online import Online
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient
from lit_align.cli import main as command_line
from lit_align.diffusion.state import select_rows
from lit_align.paths import ROOT
from lit_align.studies.methods import configs, methods
from lit_align.studies.results import budgets
from lit_align.studies.runs import cores, markdown

FORWARDS = ("policy, gradient", "policy", "reference")
COST = dict(zip(FORWARDS, (3, 1, 1)))


def names() -> list[str]:
    """The configs of configs/shapes that run a preference method, dpo first."""
    used, families, compared = configs(), methods(), budgets()
    found = [name for cls in families["preference"] + families["trajectory_preference"] for name in used.get(cls.__name__, [])]
    stems = [name.removeprefix("shapes/") for name in found if name.startswith("shapes/")]
    return sorted((stem for stem in stems if stem in compared), key=lambda name: (name != "dpo", name))


class Clock(L.Callback):
    """A method with its batch; a turn measures one training step of it, per pair, the collecting of own samples apart."""

    def __init__(self, flags: list[str], pairs: int, folder: str):
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        cli = command_line(["fit", *flags, *quiet, "--trainer.max_steps", "0", "--trainer.default_root_dir", folder])
        self.module, self.clip, self.folder = cli.model, cli.trainer.gradient_clip_val, folder
        policy = cli.config.fit.model.init_args.policy.init_args
        self.policy = f"{type(cli.model.policy.adapter).__name__} {Path(policy.pretrained).name}"
        batch = next(iter(cli.trainer.train_dataloader))
        images = batch["scores"].shape[1] if "scores" in batch else 1 if "image" in self.module.feedback else 2  # in a row
        self.batch = select_rows(batch, list(range(min(len(batch["prompt"]), 2 * pairs // images))))
        self.pairs = self.collected_pairs = len(self.batch["prompt"]) * images / 2
        self.own = isinstance(self.module, Online | PolicyGradient)
        self.turns, self.collecting = [], False
        self.module.on_train_end = lambda: None  # writes no weights
        self.predict, self.module.policy.predict = self.module.policy.predict, self.counted
        if self.own:
            self.collect, self.module.collect = self.module.collect, self.timed

    def counted(self, x_t, t, cond):
        """`policy.predict`, with a note of how many images it saw."""
        which = "reference" if self.module.policy.in_reference else FORWARDS[not torch.is_grad_enabled()]
        self.forwards["rollout" if self.collecting else which] += len(x_t)
        return self.predict(x_t, t, cond)

    def timed(self, *args):
        """`collect`, with a note of how long it took and of what is learnt from it."""
        start, self.collecting = time.perf_counter(), True
        found = self.collect(*args)
        self.collecting, self.seconds = False, time.perf_counter() - start
        if isinstance(self.module, Online):
            self.collected_pairs, passes = len(found["prompt"]) if found else 0, self.module.updates
        else:
            self.collected_pairs, passes = len(found[1]) / 2, self.module.inner_epochs
        self.pairs = self.collected_pairs * passes
        return found

    def turn(self) -> None:
        steps = 1 if self.own else 2  # the first also makes the optimizer's state
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, gradient_clip_val=self.clip, callbacks=[self], default_root_dir=self.folder, **options)
        trainer.fit(self.module, DataLoader([self.batch] * steps, batch_size=None))

    def on_train_batch_start(self, *args) -> None:
        self.start, self.seconds, self.forwards = time.perf_counter(), 0.0, Counter()

    def on_train_batch_end(self, *args) -> None:
        self.took = time.perf_counter() - self.start

    def on_train_end(self, *args) -> None:
        if self.pairs:
            found = {which: self.forwards[which] / self.pairs for which in FORWARDS}
            found["rollout"] = self.forwards["rollout"] / self.collected_pairs
            found |= {"ms": (self.took - self.seconds) / self.pairs * 1e3, "rollout ms": self.seconds / self.collected_pairs * 1e3}
            self.turns.append(found)

    def measured(self) -> dict[str, float]:
        """Medians over the turns but the first."""
        middle = {key: median(turn[key] for turn in self.turns[1:]) for key in self.turns[0]}
        return middle | {"cost": sum(COST[which] * middle[which] for which in FORWARDS)}


def table(clocks: dict[str, Clock]) -> str:
    """A line for each method, relative to DPO on the same policy."""
    found = {name: clock.measured() for name, clock in clocks.items()}
    heads = ["method", "ms per pair", "relative to DPO", "expected from forwards", *(f"forwards: {which}" for which in FORWARDS)]
    lines = []
    for name in sorted(found, key=lambda name: (clocks[name].policy != clocks["dpo"].policy, found[name]["ms"])):
        f, base = found[name], found["dpo" if clocks[name].policy == clocks["dpo"].policy else f"dpo on {clocks[name].policy}"]
        rollout = [f"{f['rollout ms']:.0f}", f"{f['rollout']:.0f}"] if clocks[name].own else ["", ""]
        ratios = [f"{f['ms']:.1f}", f"{f['ms'] / base['ms']:.2f}", f"{f['cost'] / base['cost']:.2f}"]
        lines.append([f"`{name}`", *ratios, *(f"{f[which]:.3g}" for which in FORWARDS), *rollout])
    return markdown([*heads, "rollout, ms per pair", "rollout, forwards"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", help="names under configs/shapes (default: the whole preference family)")
    parser.add_argument("--pairs", type=int, default=16, help="in a batch")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--write", action="store_true", help="write docs/speed.md")
    args = parser.parse_args()
    every = names()
    if unknown := set(args.methods or ()) - set(every):
        parser.error(f"no preference method is at configs/shapes/{sorted(unknown)[0]}.yaml; there are {', '.join(every)}.")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clocks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(["dpo", *(args.methods or every)]):
            clock = clocks[name] = Clock(["--config", f"shapes/{name}"], args.pairs, folder)
            if name != "dpo" and clock.policy != clocks["dpo"].policy:
                flags = ["--config", f"shapes/{name}", "--model", "DiffusionDPO"]
                clocks.setdefault(f"dpo on {clock.policy}", Clock(flags, args.pairs, folder))
        for _ in range(1 + args.repeats):
            for clock in clocks.values():
                clock.turn()
    text = table(clocks)
    print(text)
    if args.write:
        (ROOT / "docs/speed.md").write_text(f"""# What a pair costs

Written by `python tests/benchmarks/preference_steps.py --write` on {cores()} core(s) ({platform.machine()}, {platform.system()}):
the median of {args.repeats} training steps of {args.pairs} pairs on `checkpoints/shapes-sd` (or `shapes-flow`). All methods take turns in
one process; images and captions are cached. A pair is two images or two trajectories.

- "ms per pair" is the time of training on a pair once. Methods that learn from their own samples sample first; their
  rollout, rewards included, is reported apart, per pair that it yields.
- "forwards" are the images that the denoiser sees per pair; with guidance it sees each image twice.
- "expected from forwards" is the cost relative to DPO if only forwards counted: 3 for an image with gradient, because a
  backward pass costs about two forwards, and 1 for an image without.

{text}""")


if __name__ == "__main__":
    main()
