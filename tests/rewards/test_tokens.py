"""Prompts that are cut are counted, reported once, and logged."""

import warnings

import pytest
import torch
from parts import prompts, tiny, trainer

from lit_align.algorithms.sampling import Sampling
from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.multi_reward import WeightedSum
from lit_align.rewards.pick_score import PickScore
from lit_align.rewards.tokens import tokenize

LONG = "a very long prompt " * 10


def test_what_is_cut_is_counted_and_the_first_is_reported():
    reward = PickScore("tiny")
    assert reward.truncated is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(reward, reward.tokenizer, ["short", "x" * 75], 77)  # with the two ends, 77 tokens
    assert reward.truncated == 0
    with pytest.warns(UserWarning, match="PickScore reads 77 tokens of a prompt and does not see the end of 'a very long prompt a very .* prompt \\.\\.\\.'. Validation"):
        tokens = tokenize(reward, reward.tokenizer, ["short", LONG, "x" * 76, LONG], 77)
    assert reward.truncated == 3
    assert tokens.input_ids.shape == (4, 77) and tokens.input_ids[1, -1] == reward.tokenizer.eos_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(reward, reward.tokenizer, [LONG], 77)
    assert reward.truncated == 4


def test_the_end_of_a_long_prompt_does_not_count():
    reward, images = PickScore("tiny"), torch.rand(3, 3, 16, 16)[:1].expand(3, -1, -1, -1)
    a, b, c = reward(images, [LONG, LONG + "in the snow", LONG[1:]])
    assert a == b != c


def test_validation_logs_the_share_of_cut_prompts_of_every_reward(tmp_path):
    """Of a weighted sum, too, for each of its parts."""
    sampler = Sampler(1, 1.0)
    rewards = [PickScore("tiny"), WeightedSum({"clip": CLIPScore("tiny")}, normalise=False)]
    method, t = Sampling(policy=tiny(), sampler=sampler, rewards=rewards), trainer(tmp_path)
    (batch,) = prompts(4)
    batch["prompt"] = ["a", LONG, "b", "c"]
    with pytest.warns(UserWarning, match="CLIPScore reads 77"):
        (metrics,) = t.validate(method, torch.utils.data.DataLoader([batch, batch], batch_size=None), verbose=False)
    assert metrics["val/truncated/pickscore"] == metrics["val/truncated/clip_score"] == 0.25
