"""The shared part of vision-language rewards, against transformers' own processor and hand-built conversations."""

import json
import re
import urllib.error

import pytest
import torch
from pictures import check_gradient, picture, pil
from PIL import Image
from safetensors.torch import save_file

from lit_align.paths import fetch
from lit_align.rewards import tiny
from lit_align.rewards.answers import the_number
from lit_align.rewards.published import published
from lit_align.rewards.vlm import VLM
from lit_align.rewards.vlm_images import patches, square


def by_hand(vlm, images, texts, ids):
    """Logits of the next token, a conversation at a time: the chat is written out, images go through transformers' own
    processor class, nothing is padded."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    p, rows = vlm.pictures, []
    processor = Qwen2VLImageProcessorPil(patch_size=p.patch_size, merge_size=p.merge_size, min_pixels=p.size["shortest_edge"], max_pixels=p.size["longest_edge"])
    for row, text in zip(images, texts):
        seen = processor([pil(image) for image in row], return_tensors="pt")
        pads = ["<|vision_start|>" + "<|image_pad|>" * (int(grid.prod()) // 4) + "<|vision_end|>" for grid in seen.image_grid_thw]
        chat = f"<|im_start|>user\n{''.join(pads)}{text}<|im_end|>\n<|im_start|>assistant\n"
        words = vlm.tokenizer(chat, return_tensors="pt").input_ids
        image = words == vlm.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        out = vlm.model(input_ids=words, mm_token_type_ids=image.int(), pixel_values=seen.pixel_values, image_grid_thw=seen.image_grid_thw)
        rows.append(out.logits[0, words.shape[1] - 1, ids])
    return torch.stack(rows)


@pytest.mark.parametrize("h,w", [(40, 24), (32, 32), (10, 12), (16, 64)])
def test_patches_are_those_of_transformers_processor(h, w):
    processor, images = tiny.qwen()[2], picture(2, h, w)
    want = processor([pil(image) for image in images], return_tensors="pt")
    values, grid = patches(processor, images)
    assert torch.equal(grid, want.image_grid_thw)
    difference = (values - want.pixel_values).abs() * 0.27  # in [0, 1]
    assert difference.mean() < 0.003 and difference.max() < 0.03
    if (h, w) == (32, 32):
        torch.testing.assert_close(values, want.pixel_values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
def test_next_token_is_that_of_the_conversation_written_by_hand(kind):
    vlm, images = VLM("tiny", "float32", 8, kind=kind), picture(6, 32, 32).view(3, 2, 3, 32, 32)
    texts, ids = ["a", "a much longer question", "b?"], [5, 17, 200]
    with torch.no_grad():
        got = vlm.next_token(images, texts, ids)
        torch.testing.assert_close(got, by_hand(vlm, images, texts, ids), atol=1e-5, rtol=1e-4)
        vlm.chunk = 2
        torch.testing.assert_close(vlm.next_token(images, texts, ids), got, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(vlm.next_token(images.flip(0), texts, ids), got, atol=1e-4)


def test_yes_is_a_softmax_over_both_spellings_of_yes_and_no():
    vlm, images = VLM("tiny", "float32", 8), picture(2, 32, 32)[:, None]
    spellings = [vlm.tokenizer.convert_tokens_to_ids(w) for w in ("Yes", "yes", "No", "no")]
    with torch.no_grad():
        p = by_hand(vlm, images, ["a", "bc"], range(len(vlm.tokenizer))).softmax(1)[:, spellings]
        torch.testing.assert_close(vlm.yes(images, ["a", "bc"]), p[:, :2].sum(1) / p.sum(1), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_image():
    """Against finite differences along the gradient's signs, through the resize."""
    vlm = VLM("tiny", "float32", 2)
    check_gradient(lambda x: vlm.yes(x[:, None], ["a", "b"]).sum(), picture(), 0.02, 0.1)


def test_it_is_frozen_and_names_a_word_of_several_tokens():
    vlm = VLM("tiny", "float32", 2)
    assert not vlm.model.training
    assert not any(p.requires_grad for p in vlm.parameters())
    with pytest.raises(ValueError, match="'cat' is 3 tokens of this model"):
        vlm.token("cat")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A Qwen2.5-VL in a folder as the hub has it: tensors under their published names, a chat template of its own file."""
    folder = tmp_path_factory.mktemp("qwen")
    model, words, pictures = tiny.qwen()
    torch.manual_seed(1)
    state = {k: v + 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()}
    state = {k.replace("model.visual.", "visual.").replace("model.language_model.", "model."): v for k, v in state.items()}
    assert {"visual.patch_embed.proj.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias", "lm_head.weight"} <= set(state)
    words.chat_template, words.padding_side = None, "right"
    for part in (model.config, words, pictures):
        part.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tiny.CHAT}))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder, state


def test_a_published_folder_loads(qwen):
    folder, state = qwen
    vlm, images = VLM(str(folder), "float32", 2), picture(2, 32, 32)[:, None]
    assert vlm.differentiable and vlm.tokenizer.padding_side == "left"
    assert torch.equal(vlm.model.lm_head.weight, state["lm_head.weight"])
    with torch.no_grad():
        want = by_hand(vlm, images, ["a", "what?"], [3, 9])
        torch.testing.assert_close(vlm.next_token(images, ["a", "what?"], [3, 9]), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change,said", [
    (lambda s: s.pop("model.norm.weight"), "it lacks model.language_model.norm.weight"),
    (lambda s: s.update({"lm_head.weight": torch.zeros(4, 16)}), "it has in another shape lm_head.weight"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(qwen, tmp_path, change, said):
    folder, state = qwen
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    change(state := dict(state))
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=said):
        VLM(str(tmp_path), "float32", 2)


def test_another_family_goes_through_its_own_processor(tmp_path):
    """A LLaVA: its processor and model by hand, a conversation at a time."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = tiny.qwen()[1]
    words.padding_side = "right"
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = tiny.CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    eyes = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
    text = tiny.SMALL_DECODER | {"model_type": "llama", "num_hidden_layers": 2}
    config = LlavaConfig(vision_config=eyes, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"), tie_word_embeddings=False)
    tiny.seeded(lambda: LlavaForConditionalGeneration(config)).save_pretrained(tmp_path)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(pictures, words, patch_size=8, vision_feature_select_strategy="default", chat_template=template, num_additional_image_tokens=1)
    processor.save_pretrained(tmp_path)
    vlm, images, texts = VLM(str(tmp_path), "float32", 8), picture(2, 20, 30), ["a", "a longer one"]
    assert not vlm.differentiable
    with torch.no_grad():
        got = vlm.next_token(images[:, None], texts, [3, 9])
        for row, image, text in zip(got, images, texts):
            inputs = processor(images=pil(image), text=f"<|im_start|>user\n<image>{text}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
            assert (inputs.input_ids == config.image_token_index).sum() == 4
            torch.testing.assert_close(row, vlm.model(**inputs).logits[0, -1, [3, 9]], atol=1e-5, rtol=1e-4)


def test_answers_are_the_likeliest_tokens():
    vlm, images = VLM("tiny", "float32", 2), picture(3, 32, 32)[:, None]
    said = ["one", "two", "three"]
    tiny.speak(vlm, said)
    ids = vlm.tokenizer.convert_tokens_to_ids(said)
    with torch.no_grad():
        want = [said[i] for i in vlm.next_token(images, ["a", "b", "c"], ids).argmax(1)]
    assert vlm.answers(images, ["a", "b", "c"], 5) == want


@pytest.mark.parametrize("h,w", [(20, 30), (30, 20), (24, 24), (16, 16)])
def test_square_pads_with_the_mean_colour_as_the_released_code_does(h, w):
    from transformers.image_utils import OPENAI_CLIP_MEAN as MEAN
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image, long = picture(1, h, w)[0], max(h, w)
    canvas = Image.new("RGB", (long, long), tuple(int(m * 255) for m in MEAN))
    canvas.paste(pil(image), ((long - w) // 2, (long - h) // 2))
    want = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})(canvas, return_tensors="pt").pixel_values
    difference = (square(image[None], 16) - want).abs() * 0.27
    assert difference.mean() < 0.003 and difference.max() < 0.03


# Strict reading


@pytest.mark.parametrize("answer,number", [
    ("Final Score: 3", 3), ("a dog (animal): 1\nFinal Score: 4.25\n", 4.25), ("Final Score:2.", 2), ("Final Score: 5 because", 5), ("Final Score: 1.0", 1),
])  # fmt: skip
def test_a_number_is_read(answer, number):
    assert the_number(answer, "Final Score:", 1, 5) == number


@pytest.mark.parametrize("answer", [
    "", "3", "Final Score:", "Final Score: four", "Final Score: 0", "Final Score: 6", "Final Score: -3", "Final Score: 3/5", "Final Score: 3.5.1", "Final Score: 60%", "final score: 3",
    "Final Score: 3\nFinal Score: 4", "Final Score: 3, I mean Final Score: good", "Final Score: **3**", "Score: 3", "Final Score: 45",
])  # fmt: skip
def test_an_answer_without_one_number_is_an_error_that_names_it(answer):
    with pytest.raises(ValueError, match=re.escape(f"it said {answer!r}")) as error:
        the_number(answer, "Final Score:", 1, 5)
    assert "\n" not in str(error.value)


SCRIPT = '''
import nothing_that_is_installed
RULES = """Rate it.
Textual prompt - {text_prompt}
"""
OTHER = "{text_prompt}"
def ask(prompt):
    return (
        "Look at it.\\n"
        "Rate it.\\n"
        f"Text Caption: [{prompt}]"
    )
'''


def test_a_published_question_is_read_and_its_file_never_run(tmp_path):
    (tmp_path / "ask.py").write_text(SCRIPT)
    file = str(tmp_path / "ask.py")
    assert published(file, "Textual prompt") == "Rate it.\nTextual prompt - {text_prompt}\n"
    assert published(file, "Text Caption: [") == "Look at it.\nRate it.\nText Caption: [{prompt}]"
    for part, n in (("nowhere", 0), ("Rate it", 2)):
        with pytest.raises(ValueError, match=f"has {n} strings that contain '{part}'; it must be the published file"):
            published(file, part)


def test_a_file_behind_an_address_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(url, to, progress):
        asked.append(url)
        if "gone" in url:
            raise urllib.error.URLError("no network")
        with open(to, "w") as file:
            file.write(url)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert open(fetch("https://somewhere.org/a/b.txt")).read() == "https://somewhere.org/a/b.txt"
    assert asked == ["https://somewhere.org/a/b.txt"]
    with pytest.raises(ValueError, match="https://gone.org/b.txt cannot be reached: download it elsewhere"):
        fetch("https://gone.org/b.txt")
