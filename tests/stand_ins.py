"""Networks without weights: what a call of them takes."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lit_align.policies.published import MODELS, configs_of, load_part, repositories
from lit_align.weightless.ledger import Ledger, fake_mode
from lit_align.weightless.stand_in import stand_in

PUBLISHED = {  # parameters, as counted from the published weights
    ("sd15", "unet"): 859_520_964,
    ("sd15", "vae"): 83_653_863,
    ("sd15", "text_encoder"): 123_060_480,
    ("sd21", "unet"): 865_910_724,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("sd3_medium", "transformer"): 2_028_328_000,
    ("flux_dev", "transformer"): 11_901_408_320,
    ("flux_dev", "text_encoder_2"): 4_762_310_656,
    ("qwen_image", "transformer"): 20_430_401_088,
}


@pytest.mark.parametrize("model,part", PUBLISHED, ids=lambda name: name)
def test_the_configs_that_ship_make_networks_of_the_published_size(model, part):
    index = json.loads((MODELS / model / "model_index.json").read_text())
    network = load_part(MODELS / model, part, index[part])
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[model, part]


def test_every_model_is_found_by_the_name_of_its_repository():
    assert configs_of("stabilityai/stable-diffusion-xl-base-1.0") == MODELS / "sdxl"
    assert {path.name for path in repositories().values()} == {path.name for path in MODELS.iterdir()}
    with pytest.raises(ValueError, match="the configs of nobody/model do not ship"):
        configs_of("nobody/model")


def two_layers():
    with fake_mode():
        network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    return stand_in(network)


def test_operations_and_kept_bytes_of_two_linear_layers():
    """Forward 2 b i o each; backward twice that, without the first layer's gradient for its input. ReLU keeps its output
    (b, 256), which the second layer shares; the output (b, 8) is alive."""
    network, x = two_layers(), torch.randn(10, 64)
    with Ledger() as ledger:
        out = network(x)
        forward = ledger.flops
        assert forward == 2 * 10 * (64 * 256 + 256 * 8)
        assert ledger.live["activations"] == 4 * 10 * (256 + 8)
        out.sum().backward()
        assert ledger.flops - forward == 2 * 10 * (64 * 256 + 2 * 256 * 8)
        assert ledger.live["gradients"] == 4 * sum(p.numel() for p in network.parameters())
    assert out.shape == (10, 8) and all(p.grad.shape == p.shape for p in network.parameters())
    assert len(ledger.records) == 1


def test_a_call_is_measured_once_and_counted_every_time():
    network, x = two_layers(), torch.randn(10, 64)
    with Ledger() as ledger, torch.no_grad():
        outs = [network(x) for _ in range(3)]
    assert ledger.flops == 3 * 2 * 10 * (64 * 256 + 256 * 8) and len(ledger.records) == 1
    assert torch.equal(outs[0], outs[2]) and outs[0].isfinite().all()
    assert ledger.live["activations"] == 0


def test_without_a_ledger_it_says_so():
    with pytest.raises(RuntimeError, match="within a Ledger only"):
        two_layers()(torch.randn(1, 64))


@pytest.mark.slow
def test_the_operations_of_two_samples_of_sdxl():
    """40.5 TFLOP forward and backward at 1024 pixels, by torch's flop counter on meta tensors. Our count of the attention's
    backward has the products that a fused kernel computes again: half a forward more of attention."""
    with fake_mode():
        unet = UNet2DConditionModel.from_config(json.loads((MODELS / "sdxl/unet/config.json").read_text()))
    stand_in(unet)
    added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.randn(2, 6)}
    with Ledger() as ledger:
        x, t, text = torch.randn(2, 4, 128, 128), torch.tensor([1, 2]), torch.randn(2, 77, 2048)
        unet(x, t, text, added_cond_kwargs=added).sample.sum().backward()
    assert ledger.flops / 1e12 == pytest.approx(40.5, rel=0.03)
