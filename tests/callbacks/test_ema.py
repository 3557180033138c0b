import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_align.callbacks import EMA

DECAY = 0.3  # reached at step 3


class Weights(L.Callback):
    """The weights after every optimizer step, first those before any."""

    def on_train_start(self, trainer, module):
        self.after = [module.net.weight.detach().clone()]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(self.after) <= trainer.global_step:
            self.after.append(module.net.weight.detach().clone())


def averaged(weights):
    """The mean of all weights, each with what the decays after it have left of its share."""
    d = [0.0, *(min(DECAY, (1 + n) / (10 + n)) for n in range(1, len(weights)))]
    return sum((1 - d[k]) * math.prod(d[k + 1 :]) * theta for k, theta in enumerate(weights))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_is_the_weighted_sum_of_the_weights_after_each_step(module, trainer, accumulate):
    ema, weights = EMA(DECAY), Weights()
    trainer([ema, weights], accumulate_grad_batches=accumulate).fit(module())
    assert len(weights.after) == 1 + 8 // accumulate
    state = ema.state_dict()["average"]
    assert set(state) == {"net.weight", "net.bias"}  # what is trained, nothing frozen
    torch.testing.assert_close(state["net.weight"], averaged(weights.after))


def test_average_stands_in_for_validation_and_leaves_training_alone(module, trainer):
    with_ema, without = Weights(), Weights()
    model = module()
    trainer([EMA(DECAY), with_ema], val_check_interval=4).fit(model)
    trainer([without], val_check_interval=4).fit(module())
    for a, b in zip(with_ema.after, without.after, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(model.seen, [averaged(without.after[:5]), averaged(without.after)])


@pytest.mark.parametrize("when", ["test", "predict"])
def test_average_of_a_checkpoint_stands_in_for(module, trainer, tmp_path, when):
    weights = Weights()
    save = ModelCheckpoint(tmp_path, "end", every_n_train_steps=8)
    trainer([EMA(DECAY), save, weights], enable_checkpointing=True).fit(module())
    model = module()
    getattr(trainer([EMA(DECAY)]), when)(model, ckpt_path=tmp_path / "end.ckpt")
    torch.testing.assert_close(model.seen[0], averaged(weights.after))
    torch.testing.assert_close(model.net.weight.data, weights.after[-1])  # and steps back


def test_resumed_equals_straight(module, trainer, tmp_path):
    straight, resumed = EMA(DECAY), EMA(DECAY)
    one, two = Weights(), Weights()
    trainer([straight, one], max_epochs=2).fit(module())
    save = ModelCheckpoint(tmp_path, "middle", every_n_epochs=1)
    trainer([EMA(DECAY), save], enable_checkpointing=True).fit(module())
    trainer([resumed, two], max_epochs=2).fit(module(), ckpt_path=tmp_path / "middle.ckpt")
    assert torch.equal(one.after[-1], two.after[-1])
    for name, average in straight.state_dict()["average"].items():
        assert torch.equal(average, resumed.state_dict()["average"][name])


@pytest.mark.parametrize(
    "save",
    [{"every_n_epochs": 1}, {"every_n_train_steps": 4}, {"every_n_train_steps": 100, "save_last": True}],
)
def test_checkpoints_hold_the_weights_not_the_average(module, trainer, tmp_path, save):
    weights = Weights()
    trainer([EMA(DECAY), ModelCheckpoint(tmp_path, **save), weights], enable_checkpointing=True).fit(module())
    paths = list(tmp_path.glob("*.ckpt"))
    assert paths
    for path in paths:
        checkpoint = torch.load(path, weights_only=True)
        assert torch.equal(checkpoint["state_dict"]["net.weight"], weights.after[checkpoint["global_step"]])


def test_checkpoint_saved_while_the_average_stands_in_holds_the_weights(module, trainer, tmp_path):
    class Save(L.Callback):
        def on_validation_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "within.ckpt")

    weights = Weights()
    trainer([EMA(DECAY), Save(), weights]).fit(module())
    within = torch.load(tmp_path / "within.ckpt", weights_only=True)["state_dict"]["net.weight"]
    assert torch.equal(within, weights.after[-1])


def test_weights_are_back_after_an_exception_in_validation(module, trainer):
    class Fails(module):
        def validation_step(self, x, i):
            raise RuntimeError("out of memory")

    model, weights = Fails(), Weights()
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer([EMA(DECAY), weights]).fit(model)
    assert torch.equal(model.net.weight.data, weights.after[-1])


def test_module_exports_the_average(module, trainer):
    class Exports(module):
        def on_train_end(self):
            self.export = self.net.weight.detach().clone()

    model, weights = Exports(), Weights()
    trainer([EMA(DECAY), weights]).fit(model)
    torch.testing.assert_close(model.export, averaged(weights.after))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        EMA(decay)


def test_a_batch_of_several_steps_counts_as_many(module, trainer):
    class ByHand(type(module())):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(3):
                optimizer.zero_grad()
                self.manual_backward(self.net(batch).square().mean())
                optimizer.step()

    class Ends(L.Callback):
        def on_train_start(self, trainer, module):
            self.weights = [module.net.weight.detach().clone()]

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.weights.append(module.net.weight.detach().clone())

    ema, ends = EMA(DECAY), Ends()
    trainer([ema, ends], limit_train_batches=2, gradient_clip_val=None).fit(ByHand())
    start, first, second = ends.weights
    want = DECAY**6 * start + DECAY**3 * (1 - DECAY**3) * first + (1 - DECAY**3) * second
    torch.testing.assert_close(ema.state_dict()["average"]["net.weight"], want)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_moves_at_every_nth_step_alone(module, trainer, accumulate):
    ema, weights = EMA(DECAY, every_n_steps=3), Weights()
    trainer([ema, weights], accumulate_grad_batches=accumulate).fit(module())
    want = weights.after[0]
    for n in range(3, len(weights.after), 3):
        d = min(DECAY, (1 + n) / (10 + n))
        want = d * want + (1 - d) * weights.after[n]
    assert len(weights.after) == 1 + 8 // accumulate
    torch.testing.assert_close(ema.state_dict()["average"]["net.weight"], want)


def test_steps_between_updates_out_of_range():
    with pytest.raises(ValueError, match="every_n_steps is 0; it must be 1 or more"):
        EMA(DECAY, every_n_steps=0)
