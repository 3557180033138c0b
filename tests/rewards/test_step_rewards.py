"""Rewards of noisy latents: one-step estimates, SPO's preference model, LPO's latent reward."""

import math

import pytest
import torch
import torch.nn.functional as F
from parts import (
    Darkness,
    T,
    tiny,
)

from lit_align.policies import tiny as tiny_models
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.latent import LatentReward
from lit_align.rewards.pick_score import PickScore
from lit_align.rewards.step_aware import StepAwarePreference
from lit_align.rewards.step_reward import OneStep


def test_one_step_scores_the_decoded_estimate():
    policy = tiny()
    x = torch.randn(2, *policy.latent_shape)
    got = OneStep(Darkness())(policy, x, 2 * x, T([5, 5]), ["a", "b"])
    torch.testing.assert_close(got, 1 - policy.decode(2 * x).mean((1, 2, 3)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIPModel with random weights in a folder, as the hub has it."""
    folder = str(tmp_path_factory.mktemp("clip"))
    for part in tiny_models.CLIPModel():
        part.save_pretrained(folder)
    return folder


def test_untrained_modulation_leaves_clips_score(clip):
    from transformers import CLIPModel

    model, policy = StepAwarePreference(clip), tiny()
    plain, x = CLIPModel.from_pretrained(clip), torch.randn(3, *policy.latent_shape)
    texts = ["a cat", "a dog", "a cat"]
    with torch.no_grad():
        score = model(policy, x, x, T([0, 500, 999]), texts)
        ids = model.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        pixels = F.interpolate(policy.decode(x), (16, 16), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        mean, std = T([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1), T([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        want = plain(input_ids=ids, pixel_values=(pixels - mean) / std).logits_per_image.diagonal()
        torch.testing.assert_close(PickScore(clip, clip)(policy.decode(x), texts), want)
    torch.testing.assert_close(score, want)


def test_the_released_format_loads_and_time_matters(clip, tmp_path):
    """Names of the released .bin: CLIP's own under `model.`, adaLN_modulation.1 of every layer and of the tower, t_embedder."""
    model, policy = StepAwarePreference(clip), tiny()
    added = {k for k in model.state_dict() if "adaLN" in k or "t_embedder" in k}
    places = ["model.vision_model.adaLN_modulation.1", *(f"model.vision_model.encoder.layers.{i}.adaLN_modulation.1" for i in (0, 1)), "model.t_embedder.mlp.0", "model.t_embedder.mlp.2"]
    assert added == {f"{place}.{part}" for place in places for part in ("weight", "bias")}
    assert model.state_dict()["model.vision_model.encoder.layers.0.adaLN_modulation.1.weight"].shape == (96, 16)
    torch.manual_seed(1)
    state = {k: v + 0.1 * torch.randn_like(v) if k in added else v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "released.bin")
    trained = StepAwarePreference(clip, str(tmp_path / "released.bin"))
    x = torch.randn(1, *policy.latent_shape).expand(2, -1, -1, -1).clone().requires_grad_()
    score = trained(policy, x, x, T([10, 900]), ["a", "a"])
    assert score[0] != score[1]
    score.sum().backward()
    assert x.grad.abs().max() > 0  # differentiable in the latents
    trained.save(str(tmp_path))
    again = StepAwarePreference(clip, str(tmp_path / "step_aware.safetensors"))
    torch.testing.assert_close(again(policy, x, x, T([10, 900]), ["a", "a"]), score)
    torch.save({k: v for k, v in state.items() if "t_embedder" not in k}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="lacks model.t_embedder"):
        StepAwarePreference(clip, str(tmp_path / "other.bin"))


def test_a_reward_file_that_is_nowhere_is_named(clip):
    with pytest.raises(ValueError, match="no/such.bin is neither a file"):
        StepAwarePreference(clip, "no/such.bin")


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL], ids=lambda c: c.__name__)
def test_latent_reward_reads_the_encoder_of_the_unet(family):
    """Its features, from a whole UNet with hooks on its own blocks."""
    policy, reward = tiny(family), LatentReward(tiny(family), guidance_scale=3.0, projection_dim=8)
    x, t, texts = torch.randn(2, *policy.latent_shape), T([10, 700]), ["a", "b"]
    cond, null, kept = policy.condition(texts), policy.null(2), {}
    unet = policy.denoiser
    for i, block in enumerate(unet.down_blocks):
        last = block.attentions[-1] if hasattr(block, "attentions") else block.resnets[-1]
        last.register_forward_hook(lambda _, __, out, i=i: kept.update({i: out if torch.is_tensor(out) else out[0]}))
    unet.mid_block.register_forward_hook(lambda _, __, out: kept.update(mid=out))
    with torch.no_grad():
        policy.denoise(x, t, null)
        unguided = kept["mid"]
        policy.denoise(x, t, cond)
        stages = [kept[i].mean((2, 3)) for i in range(len(unet.down_blocks))]
        stages.append((unguided + 3 * (kept["mid"] - unguided)).mean((2, 3)))
        image = torch.cat(stages, 1) @ reward.visual_projection.weight.T
        if "pooled" in cond:
            pooled = cond["pooled"]
        else:
            ids = policy.pipe.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
            pooled = policy.pipe.text_encoder(ids).pooler_output
        text = pooled @ reward.text_projection.weight.T
        want = math.exp(2.6592) * (F.normalize(image) * F.normalize(text)).sum(1)
        torch.testing.assert_close(reward(policy, x, None, t, texts), want, atol=1e-4, rtol=1e-4)


def test_latent_reward_needs_a_unet():
    with pytest.raises(ValueError, match="StableDiffusion3 has none"):
        LatentReward(tiny(StableDiffusion3))


def test_embeddings():
    image = torch.rand(2, 3, 32, 32)
    want = image.view(2, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(Darkness().embed(image), want)
    clip = CLIPScore("tiny")
    e, text = (
        clip.embed(image),
        clip.model.get_text_features(
            **clip.tokenizer(["a b"], return_tensors="pt", padding="max_length", max_length=77)
        ).pooler_output,
    )
    torch.testing.assert_close(e.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(
        clip(image, ["a b"] * 2), 100 * (e @ text[0]) / text.norm(), rtol=1e-4, atol=1e-4
    )
