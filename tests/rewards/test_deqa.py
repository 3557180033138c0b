"""DeQA-Score on mPLUG-Owl2, from an artefact with the released names, against its forward pass written out."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from pictures import check_gradient, picture

from lit_align.rewards import tiny
from lit_align.rewards.deqa import DeQA
from lit_align.rewards.mplug_owl2 import mplug_owl2
from lit_align.rewards.vlm_images import square

BEFORE = [1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, 11029, 310, 445, 1967, 29973, 13]  # LLaMA-2's own, with its tokenizer
AFTER = [29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338]
WORDS = {"excellent": 15129, "good": 1781, "fair": 6534, "poor": 6460, "bad": 4319}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """zhiyuanyou/DeQA-Score-Mix3's files: config.json and a sharded pytorch_model.bin."""
    folder = tmp_path_factory.mktemp("deqa")
    model = tiny.owl(mplug_owl2())
    torch.manual_seed(1)
    state = {k: v + 0.2 * torch.randn_like(v) for k, v in model.state_dict().items()}
    assert {
        "model.layers.0.self_attn.k_proj.multiway.1.weight", "model.layers.1.input_layernorm.multiway.0.weight", "model.vision_model.embeddings.cls_token",
        "model.vision_model.encoder.layers.0.self_attn.query_key_value.weight", "model.visual_abstractor.encoder.layers.0.crossattention.attention.q_pos_embed",
        "model.visual_abstractor.encoder.layers.1.crossattention.output.mlp.ffn_ln.weight", "model.visual_abstractor.vit_eos", "lm_head.weight",
    } <= set(state)  # fmt: skip
    config = json.loads(model.config.to_json_string()) | {"model_type": "mplug_owl2", "architectures": ["MPLUGOwl2LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    names = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in shards.items():
        torch.save({k: state[k] for k in part}, folder / file)
    index = {"metadata": {}, "weight_map": {k: file for file, part in shards.items() for k in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder, state


class Forward:
    """mPLUG-Owl2's forward pass from its tensors, with loops in place of masks: d 16, 2 heads, 2 layers of each part."""

    def __init__(self, state):
        self.s = state

    def linear(self, x, name):
        return x @ self.s[f"{name}.weight"].T + self.s.get(f"{name}.bias", 0)

    def norm(self, x, name, eps=1e-6):
        return F.layer_norm(x, x.shape[-1:], self.s[f"{name}.weight"], self.s[f"{name}.bias"], eps)

    def attention(self, q, k, v, causal=False):
        heads = []
        for i in (0, 1):
            a = q[:, 8 * i : 8 * i + 8] @ k[:, 8 * i : 8 * i + 8].T / math.sqrt(8)
            if causal:
                a = a + torch.full_like(a, -torch.inf).triu(1)
            heads.append(a.softmax(1) @ v[:, 8 * i : 8 * i + 8])
        return torch.cat(heads, 1)

    def eyes(self, pixels):
        p = "model.vision_model."
        x = F.conv2d(pixels[None], self.s[f"{p}embeddings.patch_embed.weight"], stride=4)[0].flatten(1).T
        x = torch.cat([self.s[f"{p}embeddings.cls_token"][0], x]) + self.s[f"{p}embeddings.position_embedding"][0]
        x = self.norm(x, f"{p}embeddings.pre_layernorm")
        for i in (0, 1):
            layer = f"{p}encoder.layers.{i}."
            qkv = self.linear(self.norm(x, f"{layer}input_layernorm"), f"{layer}self_attn.query_key_value").view(-1, 2, 3, 8)
            x = x + self.linear(self.attention(*(qkv[:, :, j].flatten(1) for j in range(3))), f"{layer}self_attn.dense")
            h = self.linear(self.norm(x, f"{layer}post_attention_layernorm"), f"{layer}mlp.fc1")
            x = x + self.linear(h * (1.702 * h).sigmoid(), f"{layer}mlp.fc2")
        return self.norm(x, f"{p}post_layernorm")

    def abstract(self, image):
        p = "model.visual_abstractor."
        x = self.s[f"{p}query_embeds"][0]
        for i in (0, 1):
            c = f"{p}encoder.layers.{i}.crossattention."
            x = self.norm(x, f"{c}norm1", 1e-5)
            both = torch.cat([x, self.norm(image, f"{c}normk", 1e-5)])
            at_q, at_k = self.s[f"{c}attention.q_pos_embed"], self.s[f"{c}attention.k_pos_embed"]
            q, k = self.linear(x + at_q, f"{c}attention.query"), self.linear(both + torch.cat([at_q, at_k]), f"{c}attention.key")
            x = x + self.linear(self.attention(q, k, self.linear(both, f"{c}attention.value")), f"{c}output.out_proj")
            h, m = self.norm(x, f"{c}output.norm2", 1e-5), f"{c}output.mlp."
            x = x + self.linear(self.norm(F.silu(self.linear(h, f"{m}w1")) * self.linear(h, f"{m}w3"), f"{m}ffn_ln"), f"{m}w2")
        return torch.cat([self.linear(x, f"{p}visual_fc"), self.s[f"{p}vit_eos"][0]])

    def rms(self, x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.s[f"{name}.weight"]

    def way(self, f, x, name, image):
        return torch.stack([f(row, f"{name}.multiway.{int(i)}") for row, i in zip(x, image)])

    def rotate(self, x):
        angle = torch.arange(len(x))[:, None] / 10_000 ** (torch.arange(4) / 4)
        cos, sin = torch.cat([angle.cos()] * 2, 1).repeat(1, 2), torch.cat([angle.sin()] * 2, 1).repeat(1, 2)
        a, b, c, d = x.split(4, 1)
        return x * cos + torch.cat([-b, a, -d, c], 1) * sin

    def level(self, pixels):
        seen, words = self.abstract(self.eyes(pixels)), self.s["model.embed_tokens.weight"]
        x = torch.cat([words[BEFORE], seen, words[AFTER]])
        image = [0] * len(BEFORE) + [1] * len(seen) + [0] * len(AFTER)
        for i in (0, 1):
            layer = f"model.layers.{i}."
            h = self.way(self.rms, x, f"{layer}input_layernorm", image)
            q, k, v = self.linear(h, f"{layer}self_attn.q_proj"), self.way(self.linear, h, f"{layer}self_attn.k_proj", image), self.way(self.linear, h, f"{layer}self_attn.v_proj", image)
            x = x + self.linear(self.attention(self.rotate(q), self.rotate(k), v, causal=True), f"{layer}self_attn.o_proj")
            h = self.way(self.rms, x, f"{layer}post_attention_layernorm", image)
            x = x + self.linear(F.silu(self.linear(h, f"{layer}mlp.gate_proj")) * self.linear(h, f"{layer}mlp.up_proj"), f"{layer}mlp.down_proj")
        p = self.linear(self.rms(x, "model.norm"), "lm_head")[-1][list(WORDS.values())].softmax(0)
        return (p * torch.arange(5, 0, -1)).sum()


@torch.no_grad()
def test_the_released_weights_give_the_expected_level(released):
    folder, state = released
    reward, images = DeQA(str(folder), "float32"), picture(3, 20, 30)
    want = torch.stack([Forward(state).level(pixels) for pixels in square(images, 16)])
    got = reward(images, ["a"] * 3)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert got.std() > 1e-3
    reward.chunk = 2
    torch.testing.assert_close(reward(images, ["b"] * 3), got, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_image(released):
    reward = DeQA(str(released[0]), "float32")
    check_gradient(lambda x: reward(x, ["a"]).sum(), picture(1, 20, 30), 0.002)


def test_weights_that_lack_a_tensor_are_refused_by_name(released, tmp_path):
    (tmp_path / "config.json").write_text((released[0] / "config.json").read_text())
    name = "model.layers.1.self_attn.v_proj.multiway.1.weight"
    torch.save({k: v for k, v in released[1].items() if k != name}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"holds no MPLUGOwl2 of this architecture: it lacks {name}"):
        DeQA(str(tmp_path))
