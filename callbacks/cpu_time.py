"""Training for some CPU time."""

import time

import lightning as L


class CPUTime(L.Callback):
    """Ends training once the process has computed for `seconds`, all its threads taken together, and logs
    `perf/cpu_seconds`. Unlike the clock (`--trainer.max_time`) it gives a run as much on a busy machine as on a quiet
    one. A GPU's time is not counted.

    Args:
        seconds: of CPU time, from the start of `fit`.
    """

    def __init__(self, seconds: float):
        if seconds <= 0:
            raise ValueError(f"CPUTime: seconds is {seconds}; give more than 0.")
        self.seconds, self.start = seconds, 0.0

    def on_fit_start(self, trainer, module) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        used = time.process_time() - self.start
        module.log("perf/cpu_seconds", used, rank_zero_only=True)
        if used >= self.seconds:
            trainer.should_stop = True
