"""HPSv3, from an artefact with the released names, against its forward pass written out."""

import pytest
import torch
from pictures import check_gradient, picture, pil
from safetensors.torch import save_file

from lit_align.rewards import hpsv3, tiny
from lit_align.rewards.hpsv3 import HPSv3

SCRIPT = '''INSTRUCTION = """
Rate it.
Textual prompt - {text_prompt}
"""
end = """
Now: <|Reward|>

END
"""
'''


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Qwen2-VL's folder without weights, HPSv3.safetensors with the tensors of transformers 4.45 (its embedding has a row
    for each token and one for the mark), and the script with the instruction."""
    folder = tmp_path_factory.mktemp("hpsv3")
    model, words, pictures = tiny.qwen("Qwen2VL")
    for part in (model.config, words, pictures):
        part.save_pretrained(folder)
    model.resize_token_embeddings(len(words) + 1)
    torch.manual_seed(1)
    state = {k: v + 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()}
    state = {k.replace("model.visual.", "visual.").replace("model.language_model.", "model."): v for k, v in state.items()}
    for layer, shape in ((0, (1024, 16)), (3, (16, 1024)), (5, (2, 16))):
        state |= {f"rm_head.{layer}.weight": torch.randn(shape) / shape[1] ** 0.5, f"rm_head.{layer}.bias": torch.randn(shape[0])}
    save_file(state, folder / "HPSv3.safetensors")
    (folder / "data_collator_qwen.py").write_text(SCRIPT)
    return folder, state


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(hpsv3, "AREA", 24 * 24)


def build(folder, checkpoint="HPSv3.safetensors", **kwargs):
    return HPSv3(str(folder), str(folder / checkpoint), str(folder / "data_collator_qwen.py"), "float32", **kwargs)


def by_hand(reward, state, images, prompts, sequential=True):
    """mu and log sigma, an image at a time: image tokens are scattered among words, the language model gets positions 0,
    1, 2 ..., and the head is three matrices."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor, out = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=24 * 24, max_pixels=24 * 24), []
    model, words = reward.vlm.model.model, reward.vlm.tokenizer
    for image, prompt in zip(images, prompts):
        seen = processor([pil(image)], return_tensors="pt")
        pads = "<|image_pad|>" * (int(seen.image_grid_thw.prod()) // 4)
        text = f"\nRate it.\nTextual prompt - {prompt}\n\nNow: <|Reward|>\n\nEND\n"
        chat = f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
        ids = words(chat, return_tensors="pt").input_ids
        where = ids == words.convert_tokens_to_ids("<|image_pad|>")
        x = state["model.embed_tokens.weight"][ids]
        x[where] = model.visual(seen.pixel_values, grid_thw=seen.image_grid_thw).pooler_output
        positions = torch.arange(ids.shape[1])[None]
        if not sequential:
            positions, _ = model.get_rope_index(ids, where.int(), seen.image_grid_thw)
        h = model.language_model(inputs_embeds=x, position_ids=positions).last_hidden_state[0]
        h = h[ids[0].tolist().index(words.convert_tokens_to_ids("<|Reward|>"))]
        for layer in (0, 3, 5):
            h = state[f"rm_head.{layer}.weight"] @ h + state[f"rm_head.{layer}.bias"]
            h = h.relu() if layer < 5 else h
        out.append(h)
    return torch.stack(out)


@torch.no_grad()
def test_the_released_weights_give_what_the_forward_pass_written_out_gives(released):
    reward, images, prompts = build(released[0]), picture(3, 24, 24), ["a cat", "a much longer prompt", "x"]
    want = by_hand(reward, released[1], images, prompts)
    mu, sigma = reward.moments(images, prompts)
    torch.testing.assert_close(mu, want[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sigma, want[:, 1].exp(), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mu, by_hand(reward, released[1], images, prompts, sequential=False)[:, 0], atol=1e-3)
    torch.testing.assert_close(reward(images, prompts), mu)
    reward.vlm.chunk = 1
    torch.testing.assert_close(reward(images, prompts), mu, atol=1e-4, rtol=1e-4)


def test_dropout_stays_off_and_nothing_is_trained(released):
    reward, images = build(released[0]), picture(1, 24, 24)
    first = reward(images, ["a"])
    torch.nn.ModuleList([reward]).train()
    assert torch.equal(reward(images, ["a"]), first) and not any(p.requires_grad for p in reward.parameters())


def test_gradients_reach_the_image(released):
    reward = build(released[0])
    check_gradient(lambda x: reward(x, ["a"]).sum(), picture(1, 30, 20), 0.005)


def test_names_of_transformers_5_load_too(released):
    folder, state = released
    new = {k.replace("visual.", "model.visual.", 1) if k.startswith("visual.") else k.replace("model.", "model.language_model.", 1) if k.startswith("model.") else k: v for k, v in state.items()}
    save_file(new, folder / "new.safetensors")
    images = picture(1, 24, 24)
    torch.testing.assert_close(build(folder, "new.safetensors")(images, ["a"]), build(folder)(images, ["a"]))


@pytest.mark.parametrize("change,said", [
    (lambda s: s.pop("rm_head.5.bias"), "rm_head holds no Sequential of this architecture: it lacks 5.bias"),
    (lambda s: s.update({"rm_head.6.bias": torch.zeros(2)}), "it has besides 6.bias"),
    (lambda s: s.update({"rm_head.0.weight": torch.zeros(1024, 8)}), "it has in another shape 0.weight"),
    (lambda s: s.pop("model.norm.weight"), "other.safetensors holds no Qwen2VLForConditionalGeneration of this architecture: it lacks model.language_model.norm.weight"),
    (lambda s: s.pop("visual.merger.mlp.2.bias"), "lacks model.visual.merger.mlp.2.bias"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(released, change, said):
    folder, state = released
    change(state := dict(state))
    save_file(state, folder / "other.safetensors")
    with pytest.raises(ValueError, match=said):
        build(folder, "other.safetensors")


def test_a_prompt_with_the_mark_is_refused(released):
    with pytest.raises(ValueError, match="a prompt contains <|Reward|>"):
        build(released[0])(picture(1, 24, 24), ["a <|Reward|>"])
