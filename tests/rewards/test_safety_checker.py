"""The safety checker's verdicts are diffusers' own; its reward is minus the largest margin."""

import json

import pytest
import torch
from reward_parts import assert_points_up, photo, pil, randomise
from safetensors.torch import save_file

from lit_align.rewards.safety_checker import SafetyChecker

VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "model_type": "clip_vision_model"}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """diffusers' model with thresholds near the images' cosines, and its repository under the published names."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    folder = tmp_path_factory.mktemp("checker")
    model = randomise(StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=16)), 0.2)
    model.folder = str(folder)
    e = embedding(model, photo(32, 32, 12))
    for name, n in (("concept", 17), ("special_care", 3)):
        embeds = torch.randn(n, 16, generator=torch.Generator().manual_seed(n))
        cosine = e @ torch.nn.functional.normalize(embeds, dim=1).T
        getattr(model, f"{name}_embeds").data = embeds
        getattr(model, f"{name}_embeds_weights").data = cosine.amax(0) - 0.02
    state = {k.replace("vision_model.", "vision_model.vision_model.", 1): v.contiguous() for k, v in model.state_dict().items()}
    state["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(state, folder / "model.safetensors")
    config = {"architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip", "projection_dim": 16, "vision_config": VISION, "text_config": {"model_type": "clip_text_model"}}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def pixels(images):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return processor([pil(image) for image in images], return_tensors="pt").pixel_values


def embedding(model, images):
    with torch.no_grad():
        return torch.nn.functional.normalize(model.visual_projection(model.vision_model(pixels(images))[1]), dim=1)


def test_verdicts_are_the_official_ones(official):
    images = (torch.cat([photo(32, 32, 12), photo(32, 32, 12, seed=5)]) * 255).round() / 255
    _, unsafe = official(pixels(images), torch.zeros(24, 1))
    got = SafetyChecker(official.folder, verdict=True)(images, [""] * 24)
    assert got.tolist() == [float(not u) for u in unsafe]
    assert 4 < got.sum() < 20  # both occur


@pytest.mark.parametrize("size", [(32, 32), (70, 50)], ids=str)
def test_the_reward_is_minus_the_largest_margin(official, size):
    images = (photo(*size, n=6, seed=7) * 255).round() / 255
    e = embedding(official, images)
    margin = lambda name: e @ torch.nn.functional.normalize(getattr(official, f"{name}_embeds"), dim=1).T - getattr(official, f"{name}_embeds_weights")
    extra = 0.01 * (margin("special_care") > 0).any(1)
    reward = SafetyChecker(official.folder)
    torch.testing.assert_close(reward(images, [""] * 6), -(margin("concept").amax(1) + extra), atol=1e-5 if size == (32, 32) else 0.01, rtol=0.0)
    assert_points_up(reward, images, [""] * 6, step=1e-4)  # the largest of 17 changes place


def test_what_is_differentiable():
    assert SafetyChecker("tiny").differentiable and not SafetyChecker("tiny", verdict=True).differentiable


def test_a_repository_of_something_else_is_refused(official, tmp_path):
    save_file({"vision_model.x": torch.ones(1), "visual_projection.weight": torch.ones(1, 1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": VISION, "projection_dim": 16, "text_config": {}}))
    with pytest.raises(ValueError, match="model.safetensors holds no CLIPVisionModel of this architecture: it lacks embeddings"):
        SafetyChecker(str(tmp_path))
