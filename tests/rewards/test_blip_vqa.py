"""BLIP's answers: the published tokens, in a folder of the published layout, against transformers' own pieces."""

import pytest
import torch
from reward_parts import assert_points_up, randomise

from lit_align.rewards.blip_vqa import BLIPVQA, tiny


@pytest.fixture
def folder(tmp_path):
    model, words = tiny()
    randomise(model)
    model.save_pretrained(tmp_path / "blip")
    words.save_pretrained(tmp_path / "blip")
    return str(tmp_path / "blip")


def test_the_first_word_is_read_after_the_published_marks(folder):
    """[ENC] (one after [DEC], which starts the answer) stands in place of [CLS]; yes against no."""
    reward, x = BLIPVQA(folder), torch.rand(2, 3, 16, 16)
    model, words = reward.model, reward.tokenizer
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    prompts = ["a red dog?", "is it a cat?"]  # of different length
    expected = []
    for image, prompt in zip(x, prompts):
        ids = words(prompt, return_tensors="pt").input_ids
        ids[:, 0] = model.config.text_config.vocab_size - 1
        seen = model.vision_model(((image - mean[:, None, None]) / std[:, None, None])[None]).last_hidden_state
        asked = model.text_encoder(ids, encoder_hidden_states=seen).last_hidden_state
        logits = model.text_decoder(torch.tensor([[model.config.text_config.vocab_size - 2]]), encoder_hidden_states=asked).logits[0, 0]
        yes, no = (logits[words.convert_tokens_to_ids(w)].exp() for w in ("yes", "no"))
        expected.append((yes / (yes + no)).item())
    assert reward(x, prompts).tolist() == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3 and (reward(x.flip(0), prompts) - reward(x, prompts)).abs().min() > 1e-4


def test_the_gradient_points_up(folder):
    assert_points_up(BLIPVQA(folder), torch.rand(2, 3, 20, 24), ["a dog?", "a cat?"])
