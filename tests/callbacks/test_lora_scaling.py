import lightning as L
import pytest
import torch
from lit_align.callbacks import EMA, LoRAScaling
from lit_align.callbacks.lora_scaling import bake, lora_layers, scaled
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.data import DataLoader


class Adapted(L.LightningModule):
    """y = (W + s B A) x, one layer with an adapter that is not at its start."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=["0"])
        self.net = inject_adapter_in_model(lora, nn.Sequential(nn.Linear(4, 4, bias=False)))
        nn.init.normal_(self.net[0].lora_B["default"].weight)
        self.data, self.seen, self.exports = torch.randn(4, 2, 4), [], []

    def closed_form(self, x, scale):
        layer = self.net[0]
        delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 4 / 2
        return x @ (layer.base_layer.weight + scale * delta).T

    def validation_step(self, x, i):
        self.seen.append(self.net(x).detach())
        self.log("val/mean", self.net(x).mean(), batch_size=len(x))

    test_step = validation_step

    def training_step(self, x, i):
        self.seen.append(self.net(x).detach())
        return self.net(x).square().mean()

    def on_train_end(self):
        self.exports.append(self.net[0].lora_B["default"].weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


class Logger(L.pytorch.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.metrics = {}

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics


def test_scale_interpolates_between_base_and_tuned():
    model, x = Adapted(), torch.randn(3, 4)
    for scale in (0.0, 0.3, 1.0, 2.0):
        with scaled(model, scale):
            torch.testing.assert_close(model.net(x), model.closed_form(x, scale))
    torch.testing.assert_close(model.net(x), model.closed_form(x, 1.0))


def test_base_is_the_reference_at_every_scale():
    model, x = Adapted(), torch.randn(3, 4)
    for layer in lora_layers(model):
        layer.enable_adapters(False)
    with scaled(model, 0.3):
        assert torch.equal(model.net(x), x @ model.net[0].base_layer.weight.T)


def test_bake_carries_the_scale_into_the_weights():
    model, x = Adapted(), torch.randn(3, 4)
    expected = model.closed_form(x, 0.3)
    bake(model, 0.3)
    torch.testing.assert_close(model.net(x), expected)


@pytest.mark.parametrize("when", ["validate", "test"])
def test_scale_holds_while_sampling_and_is_gone_after(trainer, when):
    model = Adapted()
    getattr(trainer([LoRAScaling(0.3)]), when)(model, verbose=False)
    torch.testing.assert_close(model.seen[0], model.closed_form(model.data[0], 0.3))
    torch.testing.assert_close(model.net(model.data[0]), model.closed_form(model.data[0], 1.0))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_sweep_is_of_the_average_where_there_is_one(trainer, order):
    model, logger, ema = Adapted(), Logger(), EMA(0.9)
    ema.average = {name: 2 * p.detach() for name, p in model.named_parameters() if p.requires_grad}  # 4 B A
    callbacks = [ema, LoRAScaling(sweep=[0.5])]
    trainer([callbacks[i] for i in order], logger=logger, limit_train_batches=0).validate(model, verbose=False)
    assert logger.metrics["val_lora_0.5/mean"] == pytest.approx(model.closed_form(model.data, 2.0).mean().item(), rel=1e-4)


def test_sweep_logs_the_metrics_of_each_scale(trainer):
    model, logger = Adapted(), Logger()
    trainer([LoRAScaling(sweep=[0.0, 0.5])], logger=logger).fit(model)
    for scale, name in ((0.0, "val_lora_0/mean"), (0.5, "val_lora_0.5/mean"), (1.0, "val/mean")):
        assert logger.metrics[name] == pytest.approx(model.closed_form(model.data, scale).mean().item(), rel=1e-5)
    assert "log" not in vars(model)  # the module is as it was


def test_sweep_runs_in_the_precision_of_validation(trainer):
    class Dtypes(Adapted):
        def validation_step(self, x, i):
            self.seen.append(self.net(x).dtype)
            self.log("val/zero", 0.0)

    model = Dtypes()
    trainer([LoRAScaling(sweep=[0.5])], precision="bf16-mixed").validate(model, verbose=False)
    assert set(model.seen) == {torch.bfloat16} and len(model.seen) == 8


def test_ramp_raises_the_scale_in_training(trainer):
    model = Adapted()
    trainer([LoRAScaling(ramp=4)], limit_val_batches=0).fit(model)
    at = []
    for x, out in zip(model.data, model.seen):
        base, tuned = model.closed_form(x, 0), model.closed_form(x, 1)
        at.append(((out - base).norm() / (tuned - base).norm()).item())
    assert at == sorted(at) and len(set(at)) == 4 and at[-1] <= 1.0
    torch.testing.assert_close(model.net(model.data[0]), model.closed_form(model.data[0], 1.0))


def test_baked_export_is_not_scaled_once_more(trainer):
    model = Adapted()
    before, x = model.net[0].lora_B["default"].weight.detach().clone(), model.data[0]
    expected = model.closed_form(x, 0.5)
    run = trainer([LoRAScaling(0.5, bake_at_end=True)], limit_val_batches=0)
    run.fit(model)
    torch.testing.assert_close(model.exports[0], before * 0.5)  # in time for the module's own on_train_end
    model.seen.clear()
    run.test(model, verbose=False)
    torch.testing.assert_close(model.seen[0], expected)


def test_no_adapter(module, trainer):
    with pytest.raises(ValueError, match="no LoRA layer"):
        trainer([LoRAScaling()]).fit(module())


def test_the_ramp_ends_at_the_whole_adapter():
    callback, seen = LoRAScaling(ramp=2), []
    callback._enter = lambda module, scale: seen.append(scale)
    for step in range(5):
        callback.on_train_batch_start(type("Trainer", (), {"global_step": step}), None, None, 0)
    assert seen == [0.0, 0.5, 1.0, 1.0, 1.0]
