"""What a trained reward is saved as is what its class loads: published names and shapes, and the same scores."""

import copy

import pytest
import torch
from blip_parts import GELU, LINEAR, artefact
from reward_parts import PROMPTS, clip_folder, photo
from safetensors.torch import load_file

from lit_align.rewards.aesthetic import AestheticScore
from lit_align.rewards.cycle_reward import CycleReward
from lit_align.rewards.hps import HPSv1, HPSv2, HPSv21
from lit_align.rewards.image_reward import ImageReward, VPScore
from lit_align.rewards.mps import MPS
from lit_align.rewards.multi_reward import MultiReward
from lit_align.rewards.pick_score import PickScore
from lit_align.rewards.rahf import RAHF
from lit_align.rewards.social_reward import SocialReward
from lit_align.shapes.reward import ShapesReward

IMAGES, NUDGE = photo(40, 40, n=2), 0.05


def trained(reward):
    """Its trainable weights, moved."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in reward.parameters():
            if p.requires_grad:
                p += NUDGE * torch.randn(p.shape, generator=g)
    return reward.eval()


def assert_same_after_loading(reward, folder, prompts=PROMPTS):
    before = reward(IMAGES, prompts)
    reward = trained(reward)
    want = reward(IMAGES, prompts)
    again = type(reward)(**reward.save(str(folder)))
    torch.testing.assert_close(again(IMAGES, prompts), want, atol=1e-5, rtol=1e-5)
    assert (want - before).abs().max() > 1e-3


@pytest.mark.parametrize("cls", [PickScore, HPSv1, HPSv2, HPSv21, SocialReward])
def test_clips(cls, tmp_path):
    where = {"pretrained": clip_folder(tmp_path / "clip")}
    where |= {"tokenizer": where["pretrained"]} if cls is PickScore else {"checkpoint": None}
    assert_same_after_loading(cls(**where), tmp_path / "reward")
    assert (tmp_path / "reward/model.safetensors").exists() and (tmp_path / "reward/config.json").exists()


def test_the_aesthetic_head_alone_is_trained(tmp_path):
    clip = clip_folder(tmp_path / "clip")
    reward = trained(AestheticScore(None, clip))
    assert {name.split(".")[0] for name, p in reward.named_parameters() if p.requires_grad} == {"mlp"}
    again = AestheticScore(**reward.save(str(tmp_path / "reward")), pretrained=clip)
    torch.testing.assert_close(again(IMAGES, PROMPTS), reward(IMAGES, PROMPTS))
    assert sorted(torch.load(tmp_path / "reward/aesthetic.pth", weights_only=True))[:2] == ["layers.0.bias", "layers.0.weight"]


@pytest.mark.parametrize("cls,file,mlp,options", [
    (ImageReward, "ImageReward.pt", LINEAR, {}), (VPScore, "VPScore.pt", LINEAR, {}), (CycleReward, "CycleReward-T2I.pth", GELU, {"variant": "T2I"}),
])  # fmt: skip
def test_blips(cls, file, mlp, options, tmp_path):
    state = artefact(tmp_path / "published", file, mlp)
    reward = trained(cls(str(tmp_path / "published"), tokenizer=str(tmp_path / "published"), **options))
    again = cls(**reward.save(str(tmp_path / "reward")), **options)
    torch.testing.assert_close(again(IMAGES, PROMPTS), reward(IMAGES, PROMPTS), atol=1e-5, rtol=1e-5)
    written = torch.load(tmp_path / "reward" / file, weights_only=True)
    unused = {name for name in state if "_proj." in name or "position_ids" in name} - set(written)
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in state.items() if k not in unused}


def test_training_starts_from_blip(tmp_path):
    """BLIP's own file has the encoders without a prefix, under `model`; the MLP is the official initialisation."""
    state = artefact(tmp_path, "ImageReward.pt")
    torch.save({"model": {k.removeprefix("blip."): v for k, v in state.items() if k.startswith("blip.")}}, tmp_path / "model_large.pth")
    (tmp_path / "ImageReward.pt").unlink()
    reward = ImageReward(str(tmp_path), str(tmp_path), blip=str(tmp_path / "model_large.pth"))
    first = reward.mlp[0]
    torch.testing.assert_close(reward.text.state_dict()["encoder.layer.1.output.dense.weight"], state["blip.text_encoder.encoder.layer.1.output.dense.weight"])
    assert first.weight.std().item() == pytest.approx(1 / (first.in_features + 1), rel=0.05) and first.bias.abs().max() == 0
    assert reward.text.config.hidden_dropout_prob == 0.1  # of med_config.json


def test_mps(tmp_path):
    reward = MPS(None, "tiny")
    assert_same_after_loading(reward, tmp_path)
    assert {name.split(".")[0] for name in load_file(tmp_path / "mps.safetensors")} == {"model", "cross_model"}


def test_rahf(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer, ViTConfig, ViTModel

    words = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz_0"]
    T5Tokenizer(vocab=[(w, -float(i)) for i, w in enumerate(words)], extra_ids=0, model_max_length=512).save_pretrained(tmp_path / "t5")
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "t5")
    vit = ViTModel(ViTConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=32, patch_size=16))
    vit.save_pretrained(tmp_path / "vit")
    reward = trained(RAHF(None, str(tmp_path / "t5"), vit=str(tmp_path / "vit")))  # trains from pre-trained parts
    again = RAHF(**reward.save(str(tmp_path / "reward")))
    for prompts in (PROMPTS, PROMPTS[::-1]):
        torch.testing.assert_close(again(IMAGES, prompts), reward(IMAGES, prompts))
    assert "vit.encoder.layer.1.attention.attention.query.weight" in torch.load(tmp_path / "reward/rahf_model.pt", weights_only=True)


def test_shapes_and_several_rewards(tmp_path):
    parts = {"a": trained(ShapesReward(None, 16, 1)), "b": trained(ShapesReward(None, 32, 2))}
    found = MultiReward(copy.deepcopy(parts)).save(str(tmp_path))
    for name, part in parts.items():
        captions = ["a red circle", "two squares"]
        torch.testing.assert_close(ShapesReward(**found[name])(IMAGES, captions), part(IMAGES, captions))
