"""DiNa-LRM, from an artefact with the released names, against its forward pass written out; image rewards of noisy latents."""

import json

import pytest
import torch
import torch.nn.functional as F
from parts import T
from peft import LoraConfig, get_peft_model

from lit_align.policies import tiny as tiny_models
from lit_align.policies.adapters import Frozen
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.dina_lrm import DiNaLRM, RewardHead
from lit_align.rewards.latent import LatentReward
from lit_align.rewards.step_reward import NoisedReward

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


@pytest.fixture(autouse=True)
def deep(monkeypatch):
    """A tiny Stable Diffusion 3.5: six blocks, the first two with a second attention."""
    from diffusers import SD3Transformer2DModel

    make = tiny_models.StableDiffusion3Pipeline

    def deeper():
        pipe = make()
        config = {k: v for k, v in pipe.transformer.config.items() if k[0] != "_"}
        pipe.register_modules(transformer=SD3Transformer2DModel(**config | {"num_layers": 6, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}))
        return pipe

    monkeypatch.setattr(tiny_models, "StableDiffusion3Pipeline", deeper)


def policy():
    return StableDiffusion3("tiny", Frozen(), resolution=32)


@pytest.fixture
def released(tmp_path):
    """liuhuohuo/DiNa-LRM-SD35M-12layers' files: config.json, checkpoint/backbone_lora (peft) and checkpoint/rm_head.pt."""
    transformer = policy().denoiser
    transformer.transformer_blocks = transformer.transformer_blocks[:3]
    lora = get_peft_model(transformer, LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS))
    torch.manual_seed(0)
    for name, p in lora.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.3)
    lora.save_pretrained(tmp_path / "checkpoint/backbone_lora")
    head = RewardHead(16, 3, num_queries=3, num_attn_heads=2)
    state = {k: v + 0.3 * torch.randn_like(v) for k, v in head.state_dict().items()}
    assert {
        "layer_adapters_visual.2.cond_mlp.0.weight", "layer_adapters_text.0.layer_embed", "agg_visual.weight", "query_tokens", "attn1.gate_text.2.bias", "attn1.to_k_vis.weight",
        "attn1.norm_t.weight", "attn2.to_out.0.bias", "norm_ff.weight", "ff.2.weight", "head.bias",
    } <= set(state) and not any("attn2.gate" in k or "attn2.to_k_text" in k for k in state)  # fmt: skip
    torch.save(state, tmp_path / "checkpoint/rm_head.pt")
    config = {"num_transformer_layers": 3, "visual_head_idx": [1, 2, 3], "text_head_idx": [1, 2, 3], "use_lora": True, "use_t_embed": True, "use_logistic": False}
    config["reward_head"] = {"use_proj_in": False, "width": -1, "out_dim": 1, "num_queries": 3, "num_attn_heads": 2, "dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps({"model": config, "training": {"add_noise": True}}))
    return tmp_path, lora, state


def by_hand(lora, s, p, x_t, t, prompts):
    """Scores (B,): the blocks of the transformer with the LoRA unmerged, and the head's tensors."""
    linear = lambda x, name: F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])
    rms = lambda x, name: x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * s[f"{name}.weight"]
    cond, m, blocks = p.condition(prompts), lora.base_model.model, ([], [])
    image, time = m.pos_embed(x_t), m.time_text_embed(1000 * t, cond["pooled"])
    text = m.context_embedder(cond["text"])
    for block in m.transformer_blocks:
        text, image = block(hidden_states=image, encoder_hidden_states=text, temb=time)
        blocks[0].append(image)
        blocks[1].append(text)
    tokens = []
    for kind, states in zip(("visual", "text"), blocks):
        out = []
        for i, x in enumerate(states):
            a = f"layer_adapters_{kind}.{i}."
            gamma, beta = linear(F.silu(linear(time, f"{a}cond_mlp.0")), f"{a}cond_mlp.2")[:, None].chunk(2, -1)
            out.append(linear(x * (1 + gamma) + beta + s[f"{a}layer_embed"], f"{a}proj"))
        tokens.append(linear(torch.cat(out, -1), f"agg_{kind}"))

    def attend(q, k, v):
        heads = [(q[..., i : i + 8] @ k[..., i : i + 8].transpose(1, 2) / 8**0.5).softmax(-1) @ v[..., i : i + 8] for i in (0, 8)]
        return torch.cat(heads, -1)

    q = s["query_tokens"].expand(len(x_t), -1, -1)
    for name in ("attn1", "attn2"):
        x, h = linear(rms(q, f"{name}.norm_q"), f"{name}.to_q"), 0
        for kind, norm, seen in (("vis", "norm_v", tokens[0]), ("text", "norm_t", tokens[1]))[: 2 if name == "attn1" else 1]:
            seen = rms(seen, f"{name}.{norm}")
            v = linear(seen, f"{name}.to_v_{kind}")
            if name == "attn1":
                v = v * linear(F.silu(linear(seen, f"{name}.gate_{kind}.0")), f"{name}.gate_{kind}.2").sigmoid()
            h = h + attend(x, linear(seen, f"{name}.to_k_{kind}"), v)
        q = q + linear(h, f"{name}.to_out.0")
    q = q + linear(F.gelu(linear(rms(q, "norm_ff"), "ff.0")), "ff.2")
    return linear(q, "head").mean((1, 2))


def test_the_released_weights_give_what_the_forward_pass_written_out_gives(released):
    folder, lora, state = released
    p = policy()
    reward, x, t, prompts = DiNaLRM(p, str(folder)), torch.randn(3, *p.latent_shape), T([0.1, 0.4, 0.8]), ["a", "a red cat", "a"]
    with torch.no_grad():
        got = reward(p, x, None, t, prompts)
        torch.testing.assert_close(got, by_hand(lora, state, p, x, t, prompts), atol=1e-4, rtol=1e-4)
        assert len(p.denoiser.transformer_blocks) == 3
        assert not torch.allclose(reward(p, x, None, t.flip(0), prompts), got, atol=1e-2)
    x.requires_grad_()
    reward(p, x, None, t, prompts).sum().backward()
    assert x.grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("change,said", [
    (lambda s: s.pop("agg_text.bias"), "rm_head.pt holds no RewardHead of this architecture: it lacks agg_text.bias"),
    (lambda s: s.update({"eta3": torch.zeros(1)}), "it has besides eta3"),
    (lambda s: s.update({"head.weight": torch.zeros(2, 16)}), "it has in another shape head.weight"),
])  # fmt: skip
def test_a_head_that_does_not_fit_is_refused_by_name(released, change, said):
    folder, _, state = released
    change(state)
    torch.save(state, folder / "checkpoint/rm_head.pt")
    with pytest.raises(ValueError, match=said):
        DiNaLRM(policy(), str(folder))


@pytest.mark.parametrize("change,said", [({"use_logistic": True}, "use_logistic True"), ({"text_head_idx": [3]}, r"text_head_idx \[3\]")])
def test_a_variant_that_is_not_built_is_refused(released, change, said):
    config = json.loads((released[0] / "config.json").read_text())
    config["model"] |= change
    (released[0] / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"has {said}, which is not built here"):
        DiNaLRM(policy(), str(released[0]))


def test_another_backbone_is_refused(released, monkeypatch):
    with pytest.raises(ValueError, match="StableDiffusionXL has none"):
        DiNaLRM(StableDiffusionXL("tiny", Frozen(), resolution=32), None)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="the transformer has no transformer_blocks"):
        DiNaLRM(policy(), str(released[0]))  # two blocks, none with a second attention


def test_without_weights_it_reads_half_of_the_blocks():
    reward = DiNaLRM(policy(), None)
    assert len(reward.backbone.denoiser.transformer_blocks) == 3 and len(reward.head.layer_adapters_visual) == 3


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: DiNaLRM(policy(), None), lambda: LatentReward(StableDiffusion("tiny", Frozen(), resolution=32), projection_dim=8)], ids=["flow", "diffusion"])
def test_a_latent_reward_of_images_noises_what_it_encodes(make, monkeypatch):
    step = make()
    p, reward = step.backbone, NoisedReward(step, [0.4, 0.1], seed=3)
    x_0 = torch.randn(2, *p.latent_shape)
    monkeypatch.setattr(p, "encode", lambda images: x_0)
    g, want = torch.Generator().manual_seed(3), []
    for level in (0.4, 0.1):
        eps = torch.randn(p.latent_shape, generator=g)
        t = T(level) if p.process.prediction == "flow" else (p.process.sigmas[:1000] - level).abs().argmin()
        alpha = 1 - level if p.process.prediction == "flow" else (1 - level**2) ** 0.5
        x_t = alpha * x_0 + level * eps
        want.append(step(p, x_t, None, t.expand(2), ["a", "b"]))
    tolerance = 1e-4 if p.process.prediction == "flow" else 0.05  # the grid of training times
    torch.testing.assert_close(reward(torch.rand(2, 3, 32, 32), ["a", "b"]), torch.stack(want).mean(0), atol=tolerance, rtol=tolerance)
