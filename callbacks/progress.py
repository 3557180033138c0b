"""One progress bar over a whole run."""

import os
import sys
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar, Timer
from lit_align.callbacks.metrics import Throughput
from tqdm import tqdm

MEASURED = 3  # optimizer steps, after the first, that memory and time are measured over
HEADLINES = ("loss", "reward", "implicit_accuracy", "margin", "kl_step", "kl_path")  # logged under train/


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour."""
    return tqdm.format_interval(max(seconds, 0.0))


def duration(seconds: float) -> str:
    """Two digits and a unit: 40 s, 12 min, 3.4 h."""
    size, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 2 * s or s == 1)
    return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.2g} {unit}"


def memory(device: torch.device) -> str:
    """The peak so far: of a GPU what PyTorch allocated, else what the process held."""
    used = Throughput.peak(device) / 2**10
    if device.type != "cuda":
        return f"{used:.1f} GB"
    return f"{used:.1f} of the GPU's {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GB"


class Progress(ProgressBar):
    """One bar over all training steps with the time left and the headline metrics; every validation is one line, and
    after the first steps there is one with the peak memory and the time that the rest will take.

    Where stderr is no terminal (a log file, a job's output), a plain line every tenth of the run and every
    `log_seconds`. The run's length is `max_steps`, else `max_epochs`, else `max_time`.

    Args:
        log_seconds: seconds between two lines where there is no terminal.
    """

    def __init__(self, log_seconds: float = 30.0):
        super().__init__()
        self.log_seconds = log_seconds
        self.shown, self.bar = True, None
        self.mark = self.measured = None

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def print(self, *args, sep: str = " ", **kwargs) -> None:
        """A line above the bar."""
        if self.shown:
            tqdm.write(sep.join(map(str, args)), file=sys.stderr)

    # The bar

    def begin(self, total: float | None, done: float = 0.0, unit: str = "steps") -> None:
        """`total` None: unknown."""
        self.total, self.first, self.done, self.unit = total, done, done, unit
        self.started = self.last_line = time.monotonic()
        if self.shown and sys.stderr.isatty() and all(os.get_terminal_size(sys.stderr.fileno())):
            end = "{elapsed}<{remaining}{postfix}" if total else "{elapsed}{postfix}"
            counts = "{desc}{percentage:3.0f}%|{bar:20}| {n:g}/{total:g} " if total else "{desc}{n:g} "
            self.bar = tqdm(
                total=total,
                initial=done,
                bar_format=counts + unit + " " + end,
                dynamic_ncols=True,
                delay=0,
                mininterval=0.1,
                file=sys.stderr,
            )

    def advance(self, done: float, metrics: dict[str, float]) -> None:
        if not self.shown:
            return
        text = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        before, self.done = self.done, done
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - before)
            return
        now = time.monotonic()
        tenth = self.total and int(10 * done / self.total) > int(10 * before / self.total)
        if tenth or now - self.last_line >= self.log_seconds:
            self.last_line = now
            self.print(self.line(now) + (f", {text}" if text else ""))

    def line(self, now: float) -> str:
        """Where the run is, as text."""
        gone = now - self.started
        if not self.total:
            return f"{self.done:g} {self.unit}, {clock(gone)} gone"
        left = gone * (self.total - self.done) / max(self.done - self.first, 1e-9)
        share = f"{self.done:g}/{self.total:g} {self.unit} ({100 * self.done / self.total:.0f} %)"
        return f"{share}, {clock(gone)} gone, {clock(left)} left"

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    # Training

    def position(self, trainer: L.Trainer) -> tuple[str, float, float | None]:
        """(unit, done, total) of a training run: optimizer steps of `max_steps`, else batches of `max_epochs`, else
        seconds of `max_time`, else steps without an end."""
        if trainer.max_steps > 0:
            return "steps", trainer.global_step, trainer.max_steps
        if (trainer.max_epochs or 0) > 0 and trainer.num_training_batches != float("inf"):
            total = trainer.max_epochs * trainer.num_training_batches
            return "batches", trainer.fit_loop.epoch_loop.batch_progress.total.processed, total
        for timer in trainer.callbacks:
            if isinstance(timer, Timer) and timer.time_remaining() is not None:
                gone = timer.time_elapsed()
                total = round(gone + timer.time_remaining())
                return "seconds", min(round(gone), total), total
        return "steps", trainer.global_step, None

    def on_train_start(self, trainer, module) -> None:
        unit, done, total = self.position(trainer)
        self.begin(total, done, unit)
        self.mark, self.measured, self.first_step = None, False, trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        logged = trainer.callback_metrics
        metrics = {name: float(logged[f"train/{name}"]) for name in HEADLINES if f"train/{name}" in logged}
        self.advance(self.position(trainer)[1], metrics)
        if not self.measured and trainer.global_step > self.first_step:
            self.measure(trainer, module)

    def measure(self, trainer, module) -> None:
        """Marks the end of the first optimizer step, and prints the line when MEASURED further ones are done."""
        now, (unit, done, total) = time.monotonic(), self.position(trainer)
        self.mark = self.mark or (now, done, trainer.global_step)
        since, before, step = self.mark
        if trainer.global_step < step + MEASURED:
            return
        self.measured = True
        parts = [f"after {trainer.global_step - self.first_step} steps: peak memory {memory(module.device)}"]
        if trainer.world_size > 1:
            parts[0] += f" on the first of {trainer.world_size} devices"
        parts.append(f"{duration((now - since) / (trainer.global_step - step))} a step")
        if total and unit != "seconds":
            left = (now - since) * (total - done) / (done - before)
            parts.append(f"about {duration(left)} for the {total - done:,} {unit} left, validations not counted")
        self.print(", ".join(parts))

    def on_train_end(self, trainer, module) -> None:
        self.end()

    def on_exception(self, trainer, module, exception) -> None:
        self.end()

    def teardown(self, trainer, module, stage) -> None:
        self.end()

    # Validation, test, predict

    def on_validation_start(self, trainer, module) -> None:
        self.validation = time.monotonic()
        if trainer.state.fn == "validate":
            self.begin(sum(trainer.num_val_batches), unit="batches")
        elif self.bar is not None:
            self.bar.set_description_str("validating: ")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.state.fn == "validate":
            self.advance(self.done + 1, {})

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn == "validate":
            self.end()
        elif self.bar is not None:
            self.bar.set_description_str("")
        if self.mark:
            self.mark = (self.mark[0] + time.monotonic() - self.validation, *self.mark[1:])
        if not trainer.sanity_checking:
            self.results(trainer, "val/", f"validation at step {trainer.global_step}", self.validation)

    def results(self, trainer, prefix: str, what: str, since: float) -> None:
        """One line of everything that was logged under a prefix."""
        found = {k.removeprefix(prefix): float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        values = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        self.print(f"{what}: {values or 'nothing logged'} ({clock(time.monotonic() - since)})")

    def on_test_start(self, trainer, module) -> None:
        trainer.test_loop.verbose = False  # the line of on_test_end in place of Lightning's table
        self.validation = time.monotonic()
        self.begin(sum(trainer.num_test_batches), unit="batches")

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.advance(self.done + 1, {})

    def on_test_end(self, trainer, module) -> None:
        self.end()
        self.results(trainer, "test/", "test", self.validation)

    def on_predict_start(self, trainer, module) -> None:
        self.begin(sum(trainer.num_predict_batches), unit="batches")

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.advance(self.done + 1, {})

    def on_predict_end(self, trainer, module) -> None:
        self.end()
