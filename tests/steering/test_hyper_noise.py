"""Noise hypernetworks at use."""

import pytest
import torch
from hooked import PROMPTS, draw, noise, still
from parts import FAMILIES, tiny

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.hyper_noise import LAST, HyperNoise, NoiseNetwork


def network(policy, seed=0, scale=0.1):
    net, g = NoiseNetwork(policy, 2, 4), torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.requires_grad:
            p.data = scale * torch.randn(p.shape, generator=g)
    return net


def start(policy):
    x = noise(policy)
    return x, Sampler(4, 3.0).timesteps(policy)[:1].expand(len(x)), policy.condition(PROMPTS)


@FAMILIES
def test_a_new_network_is_zero_and_leaves_the_denoiser_alone(family):
    policy = still(family)
    x, t, cond = start(policy)
    before, names = policy.denoise(x, t, cond), [n for n, _ in policy.denoiser.named_parameters()]
    net = NoiseNetwork(policy, 2, 4)
    assert not net(policy, x, t, cond).any() and torch.equal(policy.denoise(x, t, cond), before)
    assert names == [n for n, _ in policy.denoiser.named_parameters()] and not any(p.requires_grad for p in policy.parameters())
    assert all("lora_" in n for n, p in net.named_parameters() if p.requires_grad)
    shared = {p.data_ptr() for p in policy.denoiser.parameters()}
    assert {p.data_ptr() for n, p in net.named_parameters() if "lora_" not in n} <= shared


@FAMILIES
def test_it_is_the_adapted_network_with_the_last_layers_lora_alone(family):
    """peft's own layers give base(h) + lora(h) at the end: base(h) is taken off by the last layer's input."""
    policy = still(family)
    x, t, cond = start(policy)
    net, seen = network(policy), {}
    last = getattr(net.net, LAST[policy.denoiser_name])
    last._forward_hooks.clear()
    last.register_forward_hook(lambda layer, args, out: seen.update(lora=out - layer.base_layer(args[0])))
    whole = net(policy, x, t, cond)
    expected = seen["lora"]
    last._forward_hooks.clear()
    from lit_align.steering.hyper_noise import lora_alone

    last.register_forward_hook(lora_alone)
    last.register_forward_hook(lambda layer, args, out: seen.update(mine=out) and None)
    got = net(policy, x, t, cond)
    torch.testing.assert_close(seen["mine"], expected, atol=1e-4, rtol=1e-4)
    assert got.shape == x.shape and not torch.equal(got, whole) and got.abs().max() > 0


@FAMILIES
def test_sampling_starts_from_the_moved_noise(family, tmp_path):
    policy = still(family)
    x, t, cond = start(policy)
    net = network(policy)
    net.save(str(tmp_path))
    file = str(tmp_path / "hyper_noise.safetensors")
    with torch.no_grad():
        f = net(policy, x, t, cond)
    torch.testing.assert_close(draw(policy, HyperNoise(file)), draw(policy, x=x + f), atol=1e-4, rtol=1e-4)
    assert torch.equal(draw(policy, HyperNoise(file, strength=0.0)), draw(policy))
    calls = Sampler(4, 3.0, steering=[HyperNoise(file)], max_nfe=9)(policy, PROMPTS).calls
    assert calls["nfe_forward"] == 9  # one more than plain sampling's 8


def test_what_does_not_fit_is_refused(tmp_path):
    network(still()).save(str(tmp_path))
    file = str(tmp_path / "hyper_noise.safetensors")
    with pytest.raises(ValueError, match="was trained on another denoiser"):
        draw(still(StableDiffusion3), HyperNoise(file))
    with pytest.raises(ValueError, match="set policy.adapter to Frozen"):
        NoiseNetwork(tiny(adapter=LoRA(rank=2)))
