import torch
from reward_parts import PROMPTS, assert_points_up, by_hand, clip_folder, photo

from lit_align.rewards.pick_score import PickScore


def test_it_is_the_models_own_logit(tmp_path):
    """A CLIPModel in one repository and the tokenizer in another, as published; the formula of its README by hand."""
    folder, words = clip_folder(tmp_path / "model"), clip_folder(tmp_path / "words")
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    reward, images = PickScore(folder, words), photo(50, 70, n=2)
    reward.model.logit_scale.data.fill_(1.5)
    for file in (tmp_path / "words").glob("*token*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    cosine = by_hand(folder, images, PROMPTS)
    torch.testing.assert_close(reward(images, PROMPTS), 2.718281828**1.5 * cosine, atol=0.02, rtol=0.0)
    assert_points_up(reward, images, PROMPTS)
