"""MPS: the released module, pickled whole, becomes a file of tensors; the score is the formula on them."""

import sys
from types import ModuleType

import pytest
import torch
from reward_parts import PROMPTS, assert_points_up, clip_folder, photo, pil
from safetensors.torch import load_file
from torch import einsum, nn

from lit_align.cli import main
from lit_align.rewards.clip import load_clip
from lit_align.rewards.mps import MPS

D, HEADS, WIDTH, LAYERS = 32, 3, 8, 2  # of the cross model


class Runs:
    """What unpickling would run: it writes a file."""

    def __reduce__(self):
        return open, ("harm.txt", "w")


def released(folder, harmful=False):
    """The module under the released names, its classes in the package `trainer.models`, in half precision."""

    def layer(n, m):
        return nn.Linear(m, n, bias=False)

    class LayerNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(1 + 0.3 * torch.randn(D))
            self.register_buffer("bias", torch.zeros(D))

    class Residual(nn.Module):
        def __init__(self, **parts):
            super().__init__()
            self.fn = nn.Module()
            self.fn.norm = LayerNorm()
            for name, part in parts.items():
                setattr(self.fn, name, part)

    class RotaryEmbedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, WIDTH, 2).float() / WIDTH)))

    class Cross_model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleList([
                Residual(to_q=layer(HEADS * WIDTH, D), to_kv=layer(2 * WIDTH, D), to_out=layer(D, HEADS * WIDTH), ff=nn.Sequential(layer(8 * D, D), nn.Identity(), layer(D, 4 * D))),
                Residual(rotary_emb=RotaryEmbedding(), fused_attn_ff_proj=layer(HEADS * WIDTH + 2 * WIDTH + 8 * D, D), attn_out=layer(D, HEADS * WIDTH), ff_out=nn.Sequential(nn.Identity(), layer(D, 4 * D))),
            ]) for _ in range(LAYERS))  # fmt: skip
            for _, own in self.layers:
                own.fn.register_buffer("pos_emb", torch.zeros(5, WIDTH), persistent=False)

    class CLIPModel(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.cross_model = model, Cross_model()
            if harmful:
                self.more = Runs()

    torch.manual_seed(1)
    names = ["trainer", "trainer.models", "trainer.models.clip_model"]
    modules = {name: ModuleType(name) for name in names}
    for cls in (LayerNorm, Residual, RotaryEmbedding, Cross_model, CLIPModel):
        cls.__module__, cls.__qualname__ = names[-1], cls.__name__
        setattr(modules[names[-1]], cls.__name__, cls)
    sys.modules.update(modules)
    module = CLIPModel(load_clip(folder)[0]).half()
    torch.save(module, "MPS_overall_checkpoint.pth")
    for name in names:
        del sys.modules[name]
    return module.float()


def by_hand(module, pixels, ids, condition, threshold, scale):
    """The repository's formulas, a prompt at a time."""
    clip, norm = module.model, lambda fn, x: nn.functional.layer_norm(x, (D,), fn.norm.weight)
    heads = lambda x: x.view(1, -1, HEADS, WIDTH).transpose(1, 2)
    swiglu = lambda x: nn.functional.silu(x[..., 4 * D :]) * x[..., : 4 * D]
    text = lambda row: clip.text_model(input_ids=row[None])
    words, wanted = clip.text_projection(text(ids).last_hidden_state), clip.text_projection(text(condition).last_hidden_state)
    whole = clip.text_projection(text(ids).pooler_output)
    similar = einsum("bid,bjd->bji", words, wanted).amax(1, keepdim=True)
    mask = torch.where(similar / similar.max() > threshold, 0.0, float("-inf"))  # (1, 1, 77)
    x = clip.visual_projection(clip.vision_model(pixel_values=pixels[None]).last_hidden_state)
    for cross, own in module.cross_model.layers:
        f, y = cross.fn, norm(cross.fn, x)
        (k, v), q = f.to_kv(words).chunk(2, -1), heads(f.to_q(y)) * WIDTH**-0.5
        attention = (einsum("bhid,bjd->bhij", q, k) + mask[:, None]).softmax(-1)
        out = einsum("bhij,bjd->bhid", attention, v).transpose(1, 2).flatten(2)
        x = x + f.to_out(out) + f.ff[2](swiglu(f.ff[0](y)))
        f, y = own.fn, norm(own.fn, x)
        q, k, v, ff = f.fused_attn_ff_proj(y).split([HEADS * WIDTH, WIDTH, WIDTH, 8 * D], -1)
        angle = torch.arange(y.shape[1])[:, None] * f.rotary_emb.inv_freq  # (n, WIDTH / 2)
        turn = lambda z: torch.view_as_real(torch.polar(torch.ones_like(angle), angle) * torch.view_as_complex(torch.stack(z.chunk(2, -1), -1).contiguous())).transpose(-1, -2).flatten(-2)
        q, k = turn(heads(q)) * WIDTH**-0.5, turn(k)
        out = einsum("bhij,bjd->bhid", einsum("bhid,bjd->bhij", q, k).softmax(-1), v).transpose(1, 2).flatten(2)
        x = x + f.attn_out(out) + f.ff_out[1](swiglu(ff))
    return scale * torch.cosine_similarity(whole, x[:, 0])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return clip_folder(tmp_path / "clip", projection=D)


@pytest.mark.parametrize("threshold", [0.3, 0.01, 0.9])
def test_the_converted_file_scores_as_the_formula(folder, threshold):
    from transformers import CLIPImageProcessorPil

    module = released(folder)
    main(["convert_mps", "--source", "MPS_overall_checkpoint.pth", "--out", "mps.safetensors"])
    condition = "light, color, hands"
    reward, images = MPS("mps.safetensors", folder, condition, threshold), photo(70, 50, n=2)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([pil(image) for image in images], return_tensors="pt").pixel_values
    ids = reward.tokenizer([*PROMPTS, condition], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        want = torch.cat([by_hand(module, x, row, ids[2], threshold, module.model.logit_scale.exp()) for x, row in zip(pixels, ids)])
    got = reward(images, PROMPTS)
    torch.testing.assert_close(got, want, atol=0.02, rtol=0.01)
    assert (got[0] - got[1]).abs() > 0.1
    torch.testing.assert_close(got, torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in (0, 1)]))  # no batch matters
    assert_points_up(reward, images, PROMPTS)
    assert reward.truncated == 0


def test_the_condition_matters(folder):
    released(folder)
    main(["convert_mps", "--source", "MPS_overall_checkpoint.pth"])
    images = photo(32, 32, n=2)
    a, b = (MPS("mps.safetensors", folder, words, 0.9)(images, PROMPTS) for words in ("hands", "colour of the sky"))
    assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_converting_runs_nothing_of_the_file(folder, tmp_path, zipped, capsys):
    module = released(folder, harmful=True)
    if not zipped:
        torch.save({"a": Runs(), "b": module.model.logit_scale}, "old.pth", _use_new_zipfile_serialization=False)
        with pytest.raises((ValueError, SystemExit)):
            main(["convert_mps", "--source", "old.pth"])
    else:
        main(["convert_mps", "--source", "MPS_overall_checkpoint.pth"])
        made = load_file("mps.safetensors")
        assert not any("pos_emb" in name or "position_ids" in name for name in made)
        assert torch.equal(made["cross_model.layers.1.1.fn.attn_out.weight"], module.cross_model.layers[1][1].fn.attn_out.weight.half())
        assert f"wrote {len(made)} tensors to mps.safetensors" in capsys.readouterr().out
    assert not (tmp_path / "harm.txt").exists()


@pytest.mark.parametrize("content", [lambda: {"a": torch.ones(1)}, lambda: nn.Linear(1, 1)], ids=["tensors", "module"])
def test_another_file_is_refused(folder, content, capsys):
    torch.save(content(), "other.pth")
    with pytest.raises(SystemExit):
        main(["convert_mps", "--source", "other.pth"])
    assert "other.pth holds no MPS: give MPS_overall_checkpoint.pth, a pickled module." in capsys.readouterr().err
