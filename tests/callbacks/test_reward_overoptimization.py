from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lit_align.callbacks import RewardOveroptimizationStopping
from torch import nn
from torch.utils.data import DataLoader

PROXY, EXACT = "val/reward/proxy", "val/reward/exact"


class Scripted(L.LightningModule):
    """Validation n logs row n of a table; the weight counts the training steps."""

    def __init__(self, **metrics):
        super().__init__()
        self.metrics, self.validations = metrics, 0
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)

    def training_step(self, x, i):
        return -self.net.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)  # +1 a step

    def validation_step(self, x, i):
        for name, values in self.metrics.items():
            self.log(f"val/{'reward/' if name in ('proxy', 'exact', 'other') else ''}{name}", values[self.validations])

    def on_validation_end(self):
        self.validations += not self.trainer.sanity_checking

    def train_dataloader(self):
        return DataLoader(torch.zeros(1, 1), batch_size=None)

    val_dataloader = train_dataloader


def fit(trainer, model, stopping, **kwargs):
    run = trainer([stopping], max_epochs=len(next(iter(model.metrics.values()))), **kwargs)
    run.fit(model)
    return run.global_step, model.net.weight.item()


def test_stops_when_proxy_rises_and_held_out_falls_and_keeps_the_best(trainer):
    model = Scripted(proxy=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], exact=[0.5, 0.7, 0.6, 0.5, 0.4, 0.9])
    assert fit(trainer, model, RewardOveroptimizationStopping(PROXY, [EXACT])) == (4, 2.0)


@pytest.mark.parametrize(
    "exact",
    # rises with the proxy; falls but never twice in a row: back to a new best, back to the best
    [[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.6, 0.5, 0.6], [0.5, 0.4, 0.5, 0.4, 0.5]],
)
def test_goes_on_while_held_out_recovers(trainer, exact):
    model = Scripted(proxy=[0.1, 0.2, 0.3, 0.4, 0.5], exact=exact)
    steps, _ = fit(trainer, model, RewardOveroptimizationStopping(PROXY, [EXACT]))
    assert steps == 5


def test_both_falling_is_no_overoptimization(trainer):
    model = Scripted(proxy=[0.5, 0.4, 0.3, 0.2], exact=[0.5, 0.4, 0.3, 0.2])
    assert fit(trainer, model, RewardOveroptimizationStopping(PROXY, [EXACT], patience=1)) == (4, 1.0)


def test_held_out_is_the_mean_of_its_metrics(trainer):
    model = Scripted(proxy=[0.1, 0.2, 0.3], exact=[0.5, 0.4, 0.4], other=[0.5, 0.7, 0.5])
    stopping = RewardOveroptimizationStopping(PROXY, [EXACT, "val/reward/other"])
    assert fit(trainer, model, stopping) == (3, 2.0)


def test_falls_within_min_delta_are_noise(trainer):
    model = Scripted(proxy=[0.1, 0.2, 0.3, 0.4], exact=[0.50, 0.49, 0.48, 0.47])
    steps, _ = fit(trainer, model, RewardOveroptimizationStopping(PROXY, [EXACT], patience=1, min_delta=0.1))
    assert steps == 4


@pytest.mark.parametrize(
    "metric, values, bound",
    [("diversity", [0.9, 0.2, 0.1, 0.1], {"min_diversity": 0.3}), ("kl", [0.0, 5.0, 6.0, 7.0], {"max_kl": 4.0})],
)
def test_diversity_and_kl_bounds(trainer, metric, values, bound):
    model = Scripted(proxy=[0.1, 0.2, 0.3, 0.4], exact=[0.1, 0.2, 0.3, 0.4], **{metric: values})
    stopping = RewardOveroptimizationStopping(PROXY, [EXACT], **{metric: f"val/{metric}"}, **bound)
    assert fit(trainer, model, stopping) == (3, 1.0)


def test_sanity_check_does_not_count(trainer):
    model = Scripted(proxy=[0.1, 0.2, 0.3], exact=[0.9, 0.8, 0.7])
    stopping = RewardOveroptimizationStopping(PROXY, [EXACT])
    assert fit(trainer, model, stopping, num_sanity_val_steps=1) == (3, 1.0)


def test_a_full_sanity_check_is_the_first_validation(trainer):
    class FromTheStart(Scripted):
        def on_validation_end(self):
            self.validations += 1

    model = FromTheStart(proxy=[0.1, 0.2, 0.3, 0.4], exact=[0.9, 0.8, 0.7, 0.6])
    stopping = RewardOveroptimizationStopping(PROXY, [EXACT])
    assert fit(trainer, model, stopping, num_sanity_val_steps=-1) == (2, 0.0)  # back to the untrained weights


def test_best_weights_survive_a_resume(trainer, tmp_path):
    table = {"proxy": [0.1, 0.2, 0.3, 0.4, 0.5], "exact": [0.9, 0.8, 0.7, 0.6, 0.5]}
    save = L.pytorch.callbacks.ModelCheckpoint(tmp_path, "middle", every_n_train_steps=2, save_on_train_epoch_end=False)
    first = RewardOveroptimizationStopping(PROXY, [EXACT], patience=3)
    trainer([first, save], max_epochs=2, enable_checkpointing=True).fit(Scripted(**table))
    state = torch.load(tmp_path / "middle.ckpt", weights_only=True)["callbacks"]["RewardOveroptimizationStopping"]
    assert set(state["weights"]) == {"net.weight"}
    model = Scripted(**table)
    model.validations = 2
    run = trainer([RewardOveroptimizationStopping(PROXY, [EXACT], patience=3)], max_epochs=5)
    run.fit(model, ckpt_path=tmp_path / "middle.ckpt")
    assert model.net.weight.item() == 1.0  # of step 1, before the interruption


def test_missing_metric_names_those_that_are_there(trainer):
    with pytest.raises(ValueError, match="val/reward/gold.*not logged.*val/reward/exact, val/reward/proxy"):
        fit(trainer, Scripted(proxy=[0.1], exact=[0.1]), RewardOveroptimizationStopping(PROXY, ["val/reward/gold"]))


def test_nan_metric(trainer):
    with pytest.raises(ValueError, match="val/reward/exact is NaN"):
        fit(trainer, Scripted(proxy=[0.1], exact=[float("nan")]), RewardOveroptimizationStopping(PROXY, [EXACT]))


def test_ranks_decide_by_the_mean_of_what_they_logged():
    """A metric may be a rank's own; were each to decide by its own, one would stop and the others wait for it."""

    def rank(mine, others):
        stopping, n = RewardOveroptimizationStopping(PROXY, [EXACT], kl="train/kl", max_kl=1.0), iter(others)
        reduce = lambda value, reduce_op: (value + next(n)) / 2 if value in mine else value
        t = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce), sanity_checking=False, state=SimpleNamespace(fn="fit"), should_stop=False)
        for step, kl in enumerate(mine):
            t.global_step, t.callback_metrics = step, {PROXY: 0.1 * step, EXACT: 0.1 * step, "train/kl": kl}
            stopping.on_validation_end(t, nn.Module())
        return t.should_stop, stopping.bad, stopping.best_step

    low, high = [0.31, 0.41, 0.51], [0.6, 1.2, 1.9]  # the second is beyond its bound twice; their mean once
    assert rank(low, high) == rank(high, low) == (False, 1, 1)


def test_a_rise_within_min_delta_is_no_new_best(trainer):
    """0.55 is noise, so the weights of the first validation are kept when 0.3 stops the run."""
    model = Scripted(proxy=[0.1, 0.2, 0.3], exact=[0.50, 0.55, 0.3])
    assert fit(trainer, model, RewardOveroptimizationStopping(PROXY, [EXACT], patience=1, min_delta=0.1)) == (3, 1.0)
