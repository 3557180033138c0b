"""VQAScore, from an artefact with the released names, against CLIP and T5 by hand."""

import json

import pytest
import torch
from pictures import check_gradient, picture

from lit_align.rewards import tiny
from lit_align.rewards.vlm_images import square
from lit_align.rewards.vqa_score import VQAScore, clip_t5

SYSTEM = "An assistant answers."


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """zhiqiulin/clip-flant5's files: config.json, pytorch_model.bin, the tokenizer; and the config of its CLIP."""
    folder = tmp_path_factory.mktemp("clip-flant5")
    model, words = tiny.clip_flant5(clip_t5())
    torch.manual_seed(1)
    state = {k: v + 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()}
    state["lm_head.weight"] /= 20
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "embed_tokens.weight"):
        state[name] = state["shared.weight"]
    eyes = "vision_tower.vision_tower."
    state = {k.replace(eyes, f"{eyes}vision_model."): v for k, v in state.items()}
    assert "vision_tower.vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.weight" in state
    torch.save(state, folder / "pytorch_model.bin")
    model.vision_tower.vision_tower.config.save_pretrained(folder / "eyes")
    model.config.mm_vision_tower = str(folder / "eyes")
    config = json.loads(model.config.to_json_string()) | {"model_type": "t5", "tie_word_embeddings": False}
    config.pop("scale_decoder_outputs", None)  # which transformers 5 reads from the other
    (folder / "config.json").write_text(json.dumps(config))
    words.save_pretrained(folder)
    (folder / "constants.py").write_text(f'CONTEXT_LEN = 2048\nSYSTEM_MSG = "{SYSTEM}"\nDEFAULT_IMAGE_TOKEN = "<image>"\n')
    return folder, state


def build(folder, **kwargs):
    return VQAScore(str(folder), str(folder / "constants.py"), dtype="float32", **kwargs)


def by_hand(state, words, images, prompts):
    """An image at a time, with transformers' own CLIP and T5: sqrt(P(Yes) P(</s> | Yes))."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=4)).eval()
    prefix = "vision_tower.vision_tower.vision_model."
    clip.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False)).eval()
    t5.lm_head = torch.nn.Linear(32, 300, bias=False)  # transformers 5 ties it to the embedding, which FLAN-T5 does not
    t5.load_state_dict({k: v for k, v in state.items() if not k.startswith(("vision", "mm_", "embed"))})
    yes, end, scores = words.convert_tokens_to_ids("Yes"), words.eos_token_id, []
    for image, prompt in zip(images, prompts):
        patches = clip(square(image[None], 16), output_hidden_states=True).hidden_states[1][0, 1:]  # of the first of two layers
        patches = torch.nn.functional.gelu(patches @ state["mm_projector.0.weight"].T + state["mm_projector.0.bias"])
        patches = patches @ state["mm_projector.2.weight"].T + state["mm_projector.2.bias"]
        question = f'Does this figure show "{prompt}"? Please answer yes or no. ASSISTANT:'
        before, after = (state["shared.weight"][words(text).input_ids] for text in (f"{SYSTEM} USER:", question))
        assert words(question).input_ids[-1] == end
        out = t5(inputs_embeds=torch.cat([before, patches, after])[None], decoder_input_ids=torch.tensor([[0, yes]])).logits[0].softmax(1)
        scores.append((out[0, yes] * out[1, end]).sqrt())
    return torch.stack(scores)


@torch.no_grad()
def test_the_released_weights_give_the_probability_of_yes(released):
    folder, state = released
    reward, images, prompts = build(folder), picture(3, 20, 30), ["a cat", "a much longer prompt", "x"]
    got = reward(images, prompts)
    torch.testing.assert_close(got, by_hand(state, reward.tokenizer, images, prompts), rtol=1e-4, atol=0)
    reward.chunk = 2
    torch.testing.assert_close(reward(images, prompts), got, rtol=1e-4, atol=0)
    assert (reward(images.flip(0), prompts) / got).log().abs().max() > 0.01


def test_gradients_reach_the_image(released):
    reward = build(released[0])
    check_gradient(lambda x: reward(x, ["a"]).log().sum(), picture(1, 20, 30), 0.002)


@pytest.mark.parametrize("name", ["mm_projector.2.bias", "vision_tower.vision_tower.vision_model.pre_layrnorm.weight", "decoder.final_layer_norm.weight"])
def test_weights_that_lack_a_tensor_are_refused_by_name(released, tmp_path, name):
    folder, state = released
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    torch.save({k: v for k, v in state.items() if k != name}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"holds no CLIPT5 of this architecture: it lacks {name.replace('vision_model.', '')}"):
        VQAScore(str(tmp_path), str(folder / "constants.py"))


def test_it_is_frozen_and_stays_in_eval_mode(released):
    reward = build(released[0])
    torch.nn.ModuleList([reward]).train()
    assert not reward.model.training and not any(p.requires_grad for p in reward.parameters())
