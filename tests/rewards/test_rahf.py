"""RAHF on a file of the released names: scores, maps and words, against the repository's forward on its tensors."""

import re

import pytest
import torch
import torch.nn.functional as F
from reward_parts import assert_points_up, photo, pil, randomise

from lit_align.rewards.rahf import HEATMAPS, RAHF, SCORES

PROMPTS = ["a red circle, two squares!", "a cat"]
C, SIDE, PATCH = 64, 48, 16
WORDS = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz_0", "▁a", "▁red", "▁circle", "▁two", "▁cat", "▁squares"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """rahf_model.pt and T5's repository; the ViT and T5 in it, whose names are those of today's transformers."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer, ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("rahf")
    words = T5Tokenizer(vocab=[(w, 0.0 if w.startswith("<") else -float(i)) for i, w in enumerate(WORDS)], extra_ids=0, model_max_length=512)
    config = T5Config(vocab_size=len(words), d_model=C, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0)
    t5 = randomise(T5ForConditionalGeneration(config), 0.15, 1)
    vit = randomise(ViTModel(ViTConfig(hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=PATCH)), 0.1, 2)
    words.save_pretrained(folder)
    config.save_pretrained(folder)
    state = {f"vit.{older(k)}": v for k, v in vit.state_dict().items()} | {f"t5.{k}": v for k, v in t5.state_dict().items()}
    g = torch.Generator().manual_seed(3)

    def layer(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape, generator=g) * 1.4 / (torch.Size(shape[1:]).numel() ** 0.5)
        bias = shape[1] if "deconv" in name else shape[0]
        state[f"{name}.bias"] = 0.1 * torch.randn(bias, generator=g)

    def scale(name, n):
        state[f"{name}.scale"] = 1 + 0.1 * torch.randn(n, 1, 1, generator=g)

    layer("visual_token_projection", C, 128)
    for head in HEATMAPS:
        p = f"heatmap_predictor.{head}."
        layer(f"{p}conv_layers.0", C, C, 3, 3), scale(f"{p}conv_layers.2", C), layer(f"{p}conv_layers.3", C // 2, C, 3, 3), scale(f"{p}conv_layers.5", C // 2)
        for i, (a, b) in enumerate(zip((C // 2, C, C // 2, C // 2), (C, C // 2, C // 2, C // 4))):
            layer(f"{p}deconv_layers.{i}.0", a, b, 3, 3), scale(f"{p}deconv_layers.{i}.1", b)
            for j in (0, 3):
                layer(f"{p}conv_layers2.{i}.{j}", b, b, 3, 3), scale(f"{p}conv_layers2.{i}.{j + 1}", b)
        layer(f"{p}last_conv1", C // 4, C // 4, 3, 3), layer(f"{p}last_conv2", 1, C // 4, 3, 3)
    for head in SCORES:
        p, widths = f"score_predictor.{head}.", (C, C, C // 2, C // 4, C // 8, C // 16, C // 64)
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            layer(f"{p}conv_layers.{3 * i}", b, a, 3, 3), scale(f"{p}conv_layers.{3 * i + 1}", b)
        for i, (n, m) in zip((0, 2, 4), ((512, widths[-1] * 9), (128, 512), (1, 128))):
            layer(f"{p}linear_layers.{i}", n, m)
    torch.save(state, folder / "rahf_model.pt")
    return str(folder), state, vit, t5, words


def older(name):
    """A ViT's name in transformers 4, with which the file was written."""
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    name = re.sub(r"attention\.([qkv])_proj", lambda m: "attention.attention." + {"q": "query", "k": "key", "v": "value"}[m[1]], name)
    return name.replace("attention.o_proj", "attention.output.dense").replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")


def features(released, image, prompt):
    """Of one image and its cleaned prompt, without a batch: the image's cells and the prompt's tokens."""
    from transformers import ViTImageProcessorPil

    _, state, vit, t5, words = released
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    seen = vit(**processor(pil(image), return_tensors="pt")).last_hidden_state @ state["visual_token_projection.weight"].T + state["visual_token_projection.bias"]
    ids = words([prompt], return_tensors="pt").input_ids
    out = t5.encoder(inputs_embeds=torch.cat([seen, t5.encoder.embed_tokens(ids)], 1)).last_hidden_state
    return out[:, 1:10].transpose(1, 2).reshape(1, C, 3, 3), out[:, 10:]


def head(state, prefix, x):
    """A head's forward on its tensors."""
    s = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    conv = lambda name, x: F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], padding=1)
    norm = lambda name, x: x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt() * s[f"{name}.scale"]
    if prefix.startswith("score"):
        for i in range(6):
            x = norm(f"conv_layers.{3 * i + 1}", conv(f"conv_layers.{3 * i}", x)).relu()
        x = x.flatten(1)
        for i in (0, 2, 4):
            x = x @ s[f"linear_layers.{i}.weight"].T + s[f"linear_layers.{i}.bias"]
            x = x.relu() if i < 4 else x.sigmoid()
        return x.squeeze(1)
    for i in (0, 3):
        x = norm(f"conv_layers.{i + 2}", conv(f"conv_layers.{i}", x).relu())
    for i in range(4):
        x = F.conv_transpose2d(x, s[f"deconv_layers.{i}.0.weight"], s[f"deconv_layers.{i}.0.bias"], stride=2, padding=1, output_padding=1)
        x = norm(f"deconv_layers.{i}.1", x).relu()
        y = norm(f"conv_layers2.{i}.1", conv(f"conv_layers2.{i}.0", x)).relu()
        x = (x + norm(f"conv_layers2.{i}.4", conv(f"conv_layers2.{i}.3", y))).relu()
    return conv("last_conv2", conv("last_conv1", x).relu()).sigmoid().squeeze(1)


CLEAN = ["a red circle two squares", "a cat"]


@pytest.mark.parametrize("size", [(48, 48), (70, 50)], ids=str)
def test_scores_are_those_of_each_image_and_prompt_alone(released, size):
    """Prompts of different lengths in a batch; punctuation is gone."""
    folder, state = released[:2]
    images = (photo(*size, n=2) * 255).round() / 255
    reward = RAHF(f"{folder}/rahf_model.pt", folder, "all")
    with torch.no_grad():
        cells = torch.cat([features(released, image, prompt)[0] for image, prompt in zip(images, CLEAN)])
        want = torch.stack([head(state, f"score_predictor.{name}.", cells) for name in SCORES], 1)
    got = reward(images, PROMPTS)
    torch.testing.assert_close(got, want, atol=1e-5 if size == (48, 48) else 5e-3, rtol=0.0)
    assert reward.names == SCORES and (got[0] - got[1]).abs().max() > 0.01
    one = RAHF(f"{folder}/rahf_model.pt", folder)
    torch.testing.assert_close(one(images, PROMPTS), got[:, 3])
    assert one.names == () and reward.truncated == 0


def test_maps_show_where(released):
    folder, state = released[:2]
    images = (photo(48, 48, n=2) * 255).round() / 255
    reward = RAHF(f"{folder}/rahf_model.pt", folder)
    got = reward.heatmaps(images, PROMPTS)
    with torch.no_grad():
        cells = torch.cat([features(released, image, prompt)[0] for image, prompt in zip(images, CLEAN)])
        for name in HEATMAPS:
            assert got[name].shape == (2, 48, 48) and got[name].std() > 0.01
            torch.testing.assert_close(got[name], head(state, f"heatmap_predictor.{name}.", cells), atol=1e-4, rtol=1e-4)


def test_words_are_what_t5_writes_marked_where_it_writes_0(released, monkeypatch):
    from transformers.modeling_outputs import BaseModelOutput

    folder, _, _, t5, words = released
    images = (photo(48, 48, n=2) * 255).round() / 255
    reward = RAHF(f"{folder}/rahf_model.pt", folder)
    want = []
    for image, prompt in zip(images, CLEAN):
        with torch.no_grad():
            ids = t5.generate(encoder_outputs=BaseModelOutput(last_hidden_state=features(released, image, prompt)[1]), max_new_tokens=9)
        want.append(words.decode(ids[0], skip_special_tokens=True).split())
    got = reward.words(images, PROMPTS, max_new_tokens=9)
    assert [[w if shown else f"{w}_0" for w, shown in row] for row in got] == want
    ids = words(["a red_0 circle"]).input_ids[0]
    monkeypatch.setattr(reward.t5, "generate", lambda **kwargs: torch.tensor([[0, *ids], [0, *ids]]))
    assert reward.words(images, PROMPTS)[0] == [("a", True), ("red", False), ("circle", True)]


def test_its_gradient_points_up(released):
    folder = released[0]
    assert_points_up(RAHF(f"{folder}/rahf_model.pt", folder, "plausibility").double(), photo(70, 50, n=2).double(), PROMPTS, step=1e-4)


def test_a_file_of_another_model_is_refused(released, tmp_path):
    folder, state = released[:2]
    torch.save({k: v for k, v in state.items() if "overall" not in k}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt holds no ModuleDict of this architecture: it lacks overall.conv_layers.0.bias"):
        RAHF(str(tmp_path / "other.pt"), folder)
