"""The extractors read published files, and compute what an independent forward computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reward_parts import clip_folder, noise, open_clip, quick_gelu
from safetensors.torch import save_file

from lit_align.metrics.features import CSD, CLIPFeatures
from lit_align.metrics.inception import Inception, tensorflow_resize
from lit_align.rewards.clip import load_clip
from lit_align.rewards.preprocess import normalise


def nested_loops(x, side):
    """TensorFlow 1's bilinear resize, pixel by pixel."""
    n, m = x.shape
    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, z = i * n / side, j * m / side
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, n - 1), min(z0 + 1, m - 1)
            a, b = y - y0, z - z0
            out[i, j] = (1 - a) * ((1 - b) * x[y0, z0] + b * x[y0, z1]) + a * ((1 - b) * x[y1, z0] + b * x[y1, z1])
    return out


@pytest.mark.parametrize("size", [(5, 7), (31, 12), (13, 13)])
def test_resize_as_tensorflow_1(size):
    x = torch.rand(size, dtype=torch.float64)
    assert tensorflow_resize(x[None, None], 13)[0, 0].numpy() == pytest.approx(nested_loops(x.numpy(), 13))


def published(fc=1008):
    """Random weights under the published names, from the shapes that the paper's blocks have."""
    shapes, g = {}, torch.Generator().manual_seed(0)

    def conv(name, out, inside, kernel):
        shapes[f"{name}.conv.weight"] = (out, inside, *(kernel if isinstance(kernel, tuple) else (kernel, kernel)))
        shapes.update({f"{name}.bn.{k}": (out,) for k in ("weight", "bias", "running_mean", "running_var")})

    for name, out, inside, k in (("1a_3x3", 32, 3, 3), ("2a_3x3", 32, 32, 3), ("2b_3x3", 64, 32, 3), ("3b_1x1", 80, 64, 1), ("4a_3x3", 192, 80, 3)):
        conv(f"Conv2d_{name}", out, inside, k)
    for m, c, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        for name, out, inside, k in (("branch1x1", 64, c, 1), ("branch5x5_1", 48, c, 1), ("branch5x5_2", 64, 48, 5), ("branch3x3dbl_1", 64, c, 1), ("branch3x3dbl_2", 96, 64, 3), ("branch3x3dbl_3", 96, 96, 3), ("branch_pool", pool, c, 1)):
            conv(f"Mixed_{m}.{name}", out, inside, k)
    for name, out, inside, k in (("branch3x3", 384, 288, 3), ("branch3x3dbl_1", 64, 288, 1), ("branch3x3dbl_2", 96, 64, 3), ("branch3x3dbl_3", 96, 96, 3)):
        conv(f"Mixed_6a.{name}", out, inside, k)
    for m, w in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        for name, out, inside, k in (("branch1x1", 192, 768, 1), ("branch7x7_1", w, 768, 1), ("branch7x7_2", w, w, (1, 7)), ("branch7x7_3", 192, w, (7, 1)), ("branch7x7dbl_1", w, 768, 1), ("branch7x7dbl_2", w, w, (7, 1)), ("branch7x7dbl_3", w, w, (1, 7)), ("branch7x7dbl_4", w, w, (7, 1)), ("branch7x7dbl_5", 192, w, (1, 7)), ("branch_pool", 192, 768, 1)):
            conv(f"Mixed_{m}.{name}", out, inside, k)
    for name, out, inside, k in (("branch3x3_1", 192, 768, 1), ("branch3x3_2", 320, 192, 3), ("branch7x7x3_1", 192, 768, 1), ("branch7x7x3_2", 192, 192, (1, 7)), ("branch7x7x3_3", 192, 192, (7, 1)), ("branch7x7x3_4", 192, 192, 3)):
        conv(f"Mixed_7a.{name}", out, inside, k)
    for m, c in (("7b", 1280), ("7c", 2048)):
        for name, out, inside, k in (("branch1x1", 320, c, 1), ("branch3x3_1", 384, c, 1), ("branch3x3_2a", 384, 384, (1, 3)), ("branch3x3_2b", 384, 384, (3, 1)), ("branch3x3dbl_1", 448, c, 1), ("branch3x3dbl_2", 384, 448, 3), ("branch3x3dbl_3a", 384, 384, (1, 3)), ("branch3x3dbl_3b", 384, 384, (3, 1)), ("branch_pool", 192, c, 1)):
            conv(f"Mixed_{m}.{name}", out, inside, k)
    shapes |= {"fc.weight": (fc, 2048), "fc.bias": (fc,)}
    state = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=g)
        state[name] = x / (np.prod(shape[1:]) ** 0.5 or 1) if len(shape) > 1 else 1 + 0.1 * x if name.endswith(("bn.weight", "var")) else 0.1 * x
        state[name] = state[name].abs() if name.endswith("var") else state[name]
    return state


def forward(state, images):
    """The network once more, by functional calls in the order of the published graph."""

    def conv(name, x, stride=1, pad=(0, 0)):
        x = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, pad)
        return F.relu(F.batch_norm(x, state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"], state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], eps=1e-3))

    same = lambda name, x: conv(name, x, 1, tuple(s // 2 for s in state[f"{name}.conv.weight"].shape[2:]))
    run = lambda x, m, *names: run(same(f"Mixed_{m}.{names[0]}", x), m, *names[1:]) if names else x
    mean = lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.stack([torch.stack([torch.tensor(nested_loops(c.round().numpy(), 299)) for c in image * 255]) for image in images]).float()
    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", (x - 128) / 128, 2))
    x = F.max_pool2d(conv("Conv2d_2b_3x3", x, 1, (1, 1)), 3, 2)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 3, 2)
    for m in ("5b", "5c", "5d"):
        x = torch.cat([run(x, m, "branch1x1"), run(x, m, "branch5x5_1", "branch5x5_2"), run(x, m, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), run(mean(x), m, "branch_pool")], 1)
    x = torch.cat([conv("Mixed_6a.branch3x3", x, 2), conv("Mixed_6a.branch3x3dbl_3", run(x, "6a", "branch3x3dbl_1", "branch3x3dbl_2"), 2), F.max_pool2d(x, 3, 2)], 1)
    for m in ("6b", "6c", "6d", "6e"):
        x = torch.cat([run(x, m, "branch1x1"), run(x, m, *(f"branch7x7_{i}" for i in (1, 2, 3))), run(x, m, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))), run(mean(x), m, "branch_pool")], 1)
    x = torch.cat([conv("Mixed_7a.branch3x3_2", run(x, "7a", "branch3x3_1"), 2), conv("Mixed_7a.branch7x7x3_4", run(x, "7a", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"), 2), F.max_pool2d(x, 3, 2)], 1)
    for m, pool in (("7b", mean), ("7c", lambda x: F.max_pool2d(x, 3, 1, 1))):
        a, b = run(x, m, "branch3x3_1"), run(x, m, "branch3x3dbl_1", "branch3x3dbl_2")
        x = torch.cat([run(x, m, "branch1x1"), run(a, m, "branch3x3_2a"), run(a, m, "branch3x3_2b"), run(b, m, "branch3x3dbl_3a"), run(b, m, "branch3x3dbl_3b"), run(pool(x), m, "branch_pool")], 1)
    return x.mean((2, 3))


def test_inception_reads_the_published_names_and_is_the_published_graph(tmp_path):
    state = published()
    save_file(state, tmp_path / "inception.safetensors")
    torch.save(state | {"Mixed_7c.branch_pool.bn.num_batches_tracked": torch.tensor(0)}, tmp_path / "inception.pth")
    x = torch.rand(1, 3, 20, 26)
    net = Inception(str(tmp_path / "inception.safetensors"))
    expected = forward(state, x)
    assert net(x).shape == (1, 2048) and torch.allclose(net(x), expected, atol=1e-4) and expected.std() > 1e-3
    assert torch.allclose(net.classes(x), expected @ state["fc.weight"].T, atol=1e-3)
    assert torch.equal(Inception(str(tmp_path / "inception.pth"))(x), net(x))
    assert not net.train().training and net.width() == 2048
    del state["Mixed_6a.branch3x3.conv.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="lacks Mixed_6a.branch3x3.conv.weight"):
        Inception(str(tmp_path / "cut.safetensors"))


def test_clip_features_are_those_of_the_square_cut_first(tmp_path):
    extractor = CLIPFeatures("tiny")
    x = (torch.rand(1, 3, 40, 60) * 255).round() / 255
    picture = Image.fromarray((x[0] * 255).byte().permute(1, 2, 0).numpy()).crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    direct = extractor.model.get_image_features(pixel_values=((pixels - mean[:, None, None]) / std[:, None, None])[None]).pooler_output
    assert F.cosine_similarity(extractor(x), direct).item() > 0.999 and extractor(x).norm().item() == pytest.approx(1, rel=1e-5)
    assert torch.allclose(F.normalize(CLIPFeatures("tiny", unit=False)(x), dim=1), extractor(x), atol=1e-6)


def test_csd_reads_the_published_file(tmp_path):
    """OpenAI's names after `module.backbone.`, without the projection, the matrices beside them, under model_state_dict."""
    folder = clip_folder(tmp_path / "clip", "quick_gelu")
    official = open_clip(load_clip(folder)[1], quick_gelu)
    visual = {k.removeprefix("visual."): v for k, v in official.state_dict().items() if k.startswith("visual.")}
    width = visual.pop("proj").shape[0]
    style = torch.randn(width, 12)
    state = {f"module.backbone.{k}": v for k, v in visual.items()} | {"module.last_layer_style": style, "module.last_layer_content": style + 1}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "csd.bin")
    official.visual.proj = torch.nn.Parameter(torch.eye(width))
    x = noise(32, 32, 2).clamp(0, 1)
    expected = F.normalize(official.encode_image(normalise(x)) @ style, dim=1)
    torch.testing.assert_close(CSD(str(tmp_path / "csd.bin"), folder)(x), expected.detach(), atol=2e-5, rtol=1e-4)
    save_file({k.removeprefix("module."): v.clone() for k, v in state.items() if "style" not in k}, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="no last_layer_style"):
        CSD(str(tmp_path / "cut.safetensors"), folder)
