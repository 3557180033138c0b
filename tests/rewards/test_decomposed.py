"""Rewards of a prompt's parts."""

import pytest
import torch
from reward_parts import by_hand, clip_folder, photo

from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.decomposed import DSG, DecomposedCLIPScore, Shortfall
from lit_align.rewards.reward import Reward

WORDS = {"objects": ["circle", "square"], "attributes": ["red", "blue", "big"]}


class Says(Reward):
    """P(yes) of a question, by its words."""

    name, differentiable = "says", False

    def __init__(self, **answers):
        super().__init__()
        self.answers, self.asked = answers, []

    def forward(self, images, prompts):
        self.asked += prompts
        return torch.tensor([next(p for word, p in self.answers.items() if word in text) for text in prompts])


def test_dcs_is_the_mean_over_phrases(tmp_path):
    folder, images = clip_folder(tmp_path), photo(40, 40, 2)
    prompts = ["a big red circle left of a blue square", "a square"]
    texts = [["a big red circle", "a blue square"], ["a square"]]
    expected = [100 * by_hand(folder, [image] * len(t), t).mean() for image, t in zip(images, texts)]
    got = DecomposedCLIPScore(CLIPScore(folder), **WORDS)(images, prompts)
    torch.testing.assert_close(got, torch.stack(expected), atol=2e-1, rtol=1e-2)
    given = DecomposedCLIPScore(CLIPScore(folder))(images, prompts, phrases=[["a big red circle", "blue square"], ["square"]])
    torch.testing.assert_close(given, got)
    with pytest.raises(ValueError, match="dcs finds no object in 'a dog'"):
        DecomposedCLIPScore(CLIPScore(folder), **WORDS)(images[:1], ["a dog"])


def test_a_question_whose_parent_is_no_counts_as_no():
    judge = Says(circle=0.2, red=0.9, blue=0.9, square=0.8)
    reward = DSG(judge, **WORDS)
    assert reward(photo(8, 8), ["a red circle and a blue square"]).item() == 0.5  # square, blue; "red circle" falls with the circle
    assert judge.asked[0] == "Is there a circle in the image?" and len(judge.asked) == 4
    judge = Says(moon=0.9, full=0.4, bright=0.8, sky=0.7)
    rows = [{"question": "moon?", "parents": []}, {"question": "full?", "parents": [0]}, {"question": "bright?", "parents": [1]}, {"question": "sky?", "parents": []}]
    assert DSG(judge)(photo(8, 8), ["x"], questions=[rows]).item() == 0.5
    with pytest.raises(ValueError, match="question 0 depends on question 3"):
        DSG(judge)(photo(8, 8), ["x"], questions=[[{"question": "moon?", "parents": [3]}]])


def test_a_shortfall_is_zero_above_the_threshold():
    reward = Shortfall(Says(low=0.25, high=0.4), 0.28, 20.0)
    torch.testing.assert_close(reward(photo(8, 8, 2), ["low", "high"]), torch.tensor([20 * 0.25 - 5.6, 0.0]))
