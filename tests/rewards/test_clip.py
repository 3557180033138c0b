"""open_clip's names and transformers': the same numbers, against a forward of open_clip's architecture."""

import pytest
import torch
import torch.nn.functional as F
from reward_parts import PROMPTS, clip_folder, noise, open_clip, published_ids, quick_gelu

from lit_align.rewards.clip import from_open_clip, load_clip, load_open_clip


@pytest.mark.parametrize("hidden_act,act", [("gelu", F.gelu), ("quick_gelu", quick_gelu)], ids=["open_clip", "openai"])
def test_both_towers_are_open_clips(tmp_path, hidden_act, act):
    folder = clip_folder(tmp_path / "clip", hidden_act)
    _, words = load_clip(folder)
    official = open_clip(words, act)
    torch.save({"state_dict": {k: v.half() for k, v in official.state_dict().items()} | {"attn_mask": torch.ones(77, 77)}}, tmp_path / "file.pt")
    official.load_state_dict({k: v.half().float() for k, v in official.state_dict().items()})
    model, words = load_open_clip(str(tmp_path / "file.pt"), folder)
    pixels = noise(32, 32, 2)
    ids = words(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        image, text = model.get_image_features(pixel_values=pixels).pooler_output, model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(image, official.encode_image(pixels), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(text, official.encode_text(published_ids(words, PROMPTS)), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(model.logit_scale, official.logit_scale)
        other = open_clip(words, F.gelu if act is quick_gelu else quick_gelu)
        assert (image - other.encode_image(pixels)).abs().max() > 1e-3  # the activation matters
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_queries_keys_and_values_are_the_joint_projection(tmp_path):
    state = open_clip(load_clip("tiny")[1]).state_dict()
    new = from_open_clip(state)
    for tower, prefix in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        for kind in ("weight", "bias"):
            parts = [new[f"{prefix}.encoder.layers.1.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            assert torch.equal(torch.cat(parts), state[f"{tower}.resblocks.1.attn.in_proj_{kind}"])
    assert torch.equal(new["visual_projection.weight"], state["visual.proj"].T)
    assert sum(v.numel() for v in new.values()) == sum(v.numel() for v in state.values())


def test_without_a_file_the_weights_are_those_of_the_folder(tmp_path):
    folder = clip_folder(tmp_path)
    model, _ = load_open_clip(None, folder)
    assert torch.equal(model.visual_projection.weight, load_clip(folder)[0].visual_projection.weight)


@pytest.mark.parametrize("spoil,said", [
    (lambda s: s.pop("visual.proj"), "lacks visual_projection.weight"),
    (lambda s: s.update({"score_predictor.weight": torch.ones(1)}), "has besides score_predictor.weight"),
    (lambda s: s.update({"visual.proj": torch.ones(64, 8)}), "has in another shape visual_projection.weight"),
], ids=["missing", "more", "shape"])  # fmt: skip
def test_a_file_of_another_model_is_refused(tmp_path, spoil, said):
    folder = clip_folder(tmp_path / "clip")
    state = dict(open_clip(load_clip(folder)[1]).state_dict())
    spoil(state)
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=f"file.pt holds no CLIPModel of this architecture: it {said}"):
        load_open_clip(str(tmp_path / "file.pt"), folder)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "run": print}, tmp_path / "file.pt")
    with pytest.raises(Exception, match="(?i)weights.only"):
        load_open_clip(str(tmp_path / "file.pt"), clip_folder(tmp_path / "clip"))
