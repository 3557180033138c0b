"""NPNet: its layout, its equation, what it does to sampling."""

import pytest
import torch
import torch.nn.functional as F
from hooked import draw, noise, still

from lit_align.steering.golden_noise import GoldenNoise, NPNet
from lit_align.steering.swin import Swin

SMALL = {"width": 8, "depths": (2, 1, 2, 1), "heads": (1, 2, 2, 4)}


def swin_names(width=8, depths=(2, 1, 2, 1), heads=(1, 2, 2, 4)):
    """Name -> shape of timm's swin_tiny_patch4_window7_224 at a small size, written down from timm 0.9."""
    found = {"patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,)}
    found |= {"patch_embed.norm.weight": (width,), "patch_embed.norm.bias": (width,)}
    for i, (depth, n) in enumerate(zip(depths, heads)):
        d, layer = width * 2**i, f"layers.{i}"
        if i:
            found |= {f"{layer}.downsample.norm.weight": (2 * d,), f"{layer}.downsample.norm.bias": (2 * d,)}
            found |= {f"{layer}.downsample.reduction.weight": (d, 2 * d)}
        for j in range(depth):
            block = f"{layer}.blocks.{j}"
            for norm in ("norm1", "norm2"):
                found |= {f"{block}.{norm}.weight": (d,), f"{block}.{norm}.bias": (d,)}
            found |= {f"{block}.attn.relative_position_bias_table": (169, n)}
            for name, a, b in (("attn.qkv", d, 3 * d), ("attn.proj", d, d), ("mlp.fc1", d, 4 * d), ("mlp.fc2", 4 * d, d)):
                found |= {f"{block}.{name}.weight": (b, a), f"{block}.{name}.bias": (b,)}
    d = width * 2 ** (len(depths) - 1)
    return found | {"norm.weight": (d,), "norm.bias": (d,), "head.fc.weight": (1000, d), "head.fc.bias": (1000,)}


def released(path, side=16, text=77 * 16, seed=0):
    """A file in the release's layout: torch.save of {"unet_svd", "unet_embedding", "embeeding", "alpha", "beta"}."""
    g = torch.Generator().manual_seed(seed)
    fill = lambda shapes: {k: 0.3 * torch.randn(v, generator=g) for k, v in shapes.items()}
    mlp = lambda name, inner: {f"{name}.0.weight": (inner, side), f"{name}.0.bias": (inner,), f"{name}.2.weight": (side, inner), f"{name}.2.bias": (side,)}
    svd = mlp("mlp1", 64) | mlp("mlp2", 64) | {"mlp3.0.weight": (side, side), "mlp3.0.bias": (side,)} | mlp("mlp4", 1024)
    svd |= {"attention.qkv.weight": (3 * side, side), "attention.proj.weight": (side, side), "attention.proj.bias": (side,)}
    svd |= {f"bn.{name}": (side,) for name in ("weight", "bias", "running_mean", "running_var")}
    swin = {"upconv.weight": (4, 7, 1, 1), "upconv.bias": (4,), "downconv.weight": (3, 4, 1, 1), "downconv.bias": (3,)}
    swin |= {f"swin.{k}": v for k, v in swin_names().items()}
    state = {"unet_svd": fill(svd) | {"bn.num_batches_tracked": torch.tensor(0)}, "unet_embedding": fill(swin)}
    state |= {"embeeding": {k: 0.01 * v for k, v in fill({"linear.weight": (8, text), "linear.bias": (8,)}).items()}}
    state |= {"alpha": torch.tensor([0.4]).requires_grad_(), "beta": torch.tensor([0.3]).requires_grad_()}
    torch.save(state, path)
    return state


def test_the_released_layout_loads_and_computes_the_releases_equation(tmp_path):
    """The equation again, step by step, from the file's tensors; the Swin is tested below."""
    state, (z, text) = released(tmp_path / "npnet.pth"), (torch.randn(3, 4, 8, 8), torch.randn(3, 77, 16))
    net = NPNet.load(str(tmp_path / "npnet.pth"))
    svd, swin, words = state["unet_svd"], state["unet_embedding"], state["embeeding"]
    lin = lambda name, x: F.linear(x, svd[f"{name}.weight"], svd.get(f"{name}.bias"))
    mlp = lambda name, x: lin(f"{name}.2", lin(f"{name}.0", x).relu())
    top, bottom = torch.cat([z[:, 0], z[:, 1]], 2), torch.cat([z[:, 2], z[:, 3]], 2)
    u, s, v = torch.linalg.svd(torch.cat([top, bottom], 1))
    rows = mlp("mlp1", u.mT) + mlp("mlp2", v) + lin("mlp3.0", s)[:, None]
    q, k, w = lin("attention.qkv", rows).view(3, 16, 3, 8, 2).permute(2, 0, 3, 1, 4)
    rows = lin("attention.proj", (((q @ k.mT) / 2**0.5).softmax(-1) @ w).transpose(1, 2).reshape(3, 16, 16))
    m = u @ torch.diag_embed(mlp("mlp4", rows.mean(1)) + s) @ v
    from_svd = torch.stack([m[:, :8, :8], m[:, :8, 8:], m[:, 8:, :8], m[:, 8:, 8:]], 1)
    scale, shift = F.linear(text.flatten(1), words["linear.weight"], words["linear.bias"])[:, :, None, None].chunk(2, 1)
    e = F.group_norm(z, 1, eps=1e-6) * (1 + scale) + shift
    pic = F.conv2d(F.interpolate(z + e, (224, 224)), swin["downconv.weight"], swin["downconv.bias"])
    model = Swin(**SMALL)
    model.load_state_dict({k.removeprefix("swin."): v for k, v in swin.items() if k.startswith("swin.") and "head" not in k})
    features = model(pic)  # (3, 7, 7, 64), the first axis as channels
    from_swin = F.conv2d(F.interpolate(features, (8, 8)), swin["upconv.weight"], swin["upconv.bias"])
    expected = from_svd + (2 * torch.sigmoid(torch.tensor(0.4)) - 1) * e + 0.3 * from_swin
    torch.testing.assert_close(net(z, text), expected, atol=2e-4, rtol=2e-4)
    net.save(str(tmp_path))
    torch.testing.assert_close(NPNet.load(str(tmp_path / "npnet.safetensors"))(z, text), net(z, text))


def test_the_swin_is_that_of_transformers():
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    ours = Swin(**SMALL)
    for p in ours.parameters():
        p.data = 0.2 * torch.randn(p.shape)
    config = SwinConfig(image_size=224, embed_dim=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4], hidden_act="gelu")
    theirs, state = SwinModel(config, add_pooling_layer=False).eval(), ours.state_dict()
    new = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.norm": "patch_embed.norm", "layernorm": "norm"}
    loaded = {f"{a}.{kind}": state[f"{b}.{kind}"] for a, b in new.items() for kind in ("weight", "bias")}
    for name, value in state.items():
        if not name.startswith("layers."):
            continue
        _, i, rest = name.split(".", 2)
        if rest.startswith("downsample"):
            loaded[f"encoder.layers.{int(i) - 1}.{rest}"] = value
            continue
        _, j, rest = rest.split(".", 2)
        base, kind = f"encoder.layers.{i}.blocks.{j}.", rest.rsplit(".", 1)[-1]
        if rest.startswith("attn.qkv"):
            loaded |= {f"{base}attention.{x}_proj.{kind}": v for x, v in zip("qkv", value.chunk(3))}
            continue
        renamed = {"attn.proj": "attention.o_proj", "norm1": "layernorm_before", "norm2": "layernorm_after"}
        bias, layer = "attention.relative_position_bias.relative_position_bias_table", rest.rsplit(".", 1)[0]
        loaded[base + (bias if "table" in rest else f"{renamed.get(layer, layer)}.{kind}")] = value
    missing, unexpected = theirs.load_state_dict(loaded, strict=False)
    assert not unexpected and all("relative_position_index" in name for name in missing)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs(x).last_hidden_state.view(2, 7, 7, 64)
        torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=1e-4)


def test_without_alpha_beta_and_with_a_flat_svd_branch_noise_stays():
    net = NPNet((8, 8, 8), 77 * 16, **SMALL)  # eight channels, four at a time
    torch.nn.init.zeros_(net.svd.mlp4[2].weight)
    torch.nn.init.zeros_(net.svd.mlp4[2].bias)
    z = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(net(z, torch.randn(2, 77, 16)), z, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="4 k channels and 4 m to a side"):
        NPNet((6, 8, 8), 10, **SMALL)


def test_sampling_starts_from_the_golden_noise(tmp_path):
    released(tmp_path / "npnet.pth")
    file, policy = str(tmp_path / "npnet.pth"), still()
    assert torch.equal(draw(policy, GoldenNoise(file, strength=0.0)), draw(policy))
    with torch.no_grad():
        golden = NPNet.load(file)(noise(policy), policy.condition(["a red circle", "b"])["text"])
    torch.testing.assert_close(draw(policy, GoldenNoise(file)), draw(policy, x=golden), atol=1e-4, rtol=1e-4)
    assert not torch.equal(draw(policy, GoldenNoise(file)), draw(policy))


def test_what_does_not_fit_is_refused(tmp_path):
    file = str(tmp_path / "npnet.pth")
    released(file, text=10)
    with pytest.raises(ValueError, match="reads 10 numbers of a caption and this policy has 1232"):
        draw(still(), GoldenNoise(file))
    released(file, side=32)
    with pytest.raises(ValueError, match=r"takes latents \(4, 16, 16\) and this policy's are \(4, 8, 8\)"):
        draw(still(), GoldenNoise(file))
    torch.save({"alpha": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth is no NPNet"):
        GoldenNoise(str(tmp_path / "other.pth"))
