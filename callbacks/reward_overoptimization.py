"""Early stopping against reward over-optimization."""

import math

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from lit_align.callbacks.trainable import trainable, whole, write


class RewardOveroptimizationStopping(L.Callback):
    """Stops when the trained-on reward still rises but what it stands for does not (Gao et al. 2022, arXiv 2210.10760).

    A validation is bad when the proxy is above its value at the best validation while the mean of the held-out metrics
    is below its best, or when diversity or KL leave their bounds. After `patience` bad validations in a row training
    stops, and the trained weights go back to those of the best held-out validation, whether training was stopped or
    ran out: in what is exported, and, without EMA, in memory; checkpoints hold those that training went on with. With
    `num_sanity_val_steps: -1` the untrained policy is the first validation. Where EMA is used, list it first.

    Args:
        proxy: name of the reward that is trained on, as logged.
        held_out: names of rewards that are not.
        patience: bad validations in a row that are too many.
        min_delta: by how much held-out must fall, or rise to be the best; the standard error of the difference of two
            validations is a good choice, as smaller changes say nothing.
        diversity, min_diversity: a metric's name and its floor.
        kl, max_kl: a metric's name and its budget.
    """

    def __init__(
        self,
        proxy: str,
        held_out: list[str],
        patience: int = 2,
        min_delta: float = 0.0,
        diversity: str | None = None,
        min_diversity: float = 0.0,
        kl: str | None = None,
        max_kl: float = math.inf,
    ):
        self.proxy, self.held_out, self.patience, self.min_delta = proxy, held_out, patience, min_delta
        self.diversity, self.min_diversity, self.kl, self.max_kl = diversity, min_diversity, kl, max_kl
        self.best, self.best_proxy, self.best_step, self.bad = -math.inf, -math.inf, 0, 0
        self.weights: dict = {}  # of the best validation
        self.seen: dict = {}  # of this validation

    def _read(self, trainer, name: str) -> float:
        if name not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(
                f"RewardOveroptimizationStopping watches {name}, which is not logged; logged are {logged}."
            )
        value = float(trainer.strategy.reduce(trainer.callback_metrics[name], reduce_op="mean"))  # ranks decide alike
        if math.isnan(value):
            raise ValueError(f"{name} is NaN at step {trainer.global_step}: the reward failed on some image.")
        return value

    def on_validation_epoch_end(self, trainer, module) -> None:
        """Keeps what was validated, which is an average of the weights where EMA stands in for them."""
        self.seen = {name: whole(p) for name, p in trainable(module).items()}

    def on_validation_end(self, trainer, module) -> None:
        partial = trainer.sanity_checking and trainer.num_sanity_val_steps != math.inf
        if partial or not trainer.state.fn == "fit":
            return
        proxy = self._read(trainer, self.proxy)
        held_out = sum(self._read(trainer, name) for name in self.held_out) / len(self.held_out)
        out_of_bounds = [
            name
            for name, bad in (
                (self.diversity, self.diversity and self._read(trainer, self.diversity) < self.min_diversity),
                (self.kl, self.kl and self._read(trainer, self.kl) > self.max_kl),
            )
            if bad
        ]
        if held_out > self.best + self.min_delta and not out_of_bounds:
            self.best, self.best_proxy, self.best_step, self.bad = held_out, proxy, trainer.global_step, 0
            self.weights, self.seen = self.seen, {}
            return
        hacking = proxy > self.best_proxy and held_out < self.best - self.min_delta
        self.bad = self.bad + 1 if hacking or out_of_bounds else 0
        if self.bad >= self.patience:
            trainer.should_stop = True
            why = (
                f"{', '.join(out_of_bounds)} out of bounds"
                if out_of_bounds
                else (f"{self.proxy} rose to {proxy:.4g} while held-out fell from {self.best:.4g} to {held_out:.4g}")
            )
            rank_zero_info(f"stopped at step {trainer.global_step}: {why}")

    def on_train_end(self, trainer, module) -> None:
        if self.weights:
            write(self.weights, module)
            rank_zero_info(f"kept the weights of step {self.best_step}, held-out {self.best:.4g}")

    def state_dict(self) -> dict:
        return {k: getattr(self, k) for k in ("best", "best_proxy", "best_step", "bad", "weights")}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)
