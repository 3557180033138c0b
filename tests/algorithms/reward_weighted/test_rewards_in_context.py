"""Rewards in context: prompts are told what samples scored."""

import pytest
import torch
from parts import Darkness, T, prompts, trainer
from preferences import still
from weighted import alone, make

from lit_align.algorithms.reward_weighted.rewards_in_context import RewardsInContext


def test_the_statistics_are_all_ranks():
    method = alone(RewardsInContext, policy=still())
    method.all_gather = lambda x: torch.stack([x, x + 4.0])
    got = method.standardised(T([[[1.0, 0.0], [3.0, 2.0]]])).float()[..., 0]  # 1, 3 here and 5, 7 there
    torch.testing.assert_close(got, T([[-3.0, -1.0]]) / 5**0.5, atol=1e-4, rtol=0)


def test_prompts_carry_standardised_rewards():
    method = alone(RewardsInContext, policy=still())
    first, second = T([[[1.0, 10.0], [3.0, 10.0]]]), T([[[5.0, 10.0], [7.0, 50.0]]])
    torch.testing.assert_close(method.standardised(first).float()[..., 0], T([[-1.0, 1.0]]), atol=1e-4, rtol=0)
    got = method.standardised(second).float()  # all four by now: mean 4, variance 5; 20, 300
    want = (second - T([4.0, 20.0])) / T([5.0, 300.0]).sqrt()
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert method.written("a cat", [0.5, -1.25]) == "a cat <dark> 0.5 <red> -1.2"
    assert method.written("a cat", [-0.04, 0.04]) == "a cat <dark> 0.0 <red> 0.0"
    method.template = ", {name}: {value:+.2f}"
    assert method.written("a cat", [0.5, -1.25]) == "a cat, dark: +0.50, red: -1.25"


def test_values_can_be_words():
    method = make(RewardsInContext, still(), template=" {value}", words=["low", "mid", "high"])
    told = [method.written("a", [v, 0.0]) for v in (-7.0, -1.0, -0.4, 0.4, 0.6, 1.0, 7.0)]
    assert told == [f"a {word} mid" for word in ("low", "low", "mid", "mid", "high", "high", "high")]


def test_scored_lists_are_learnt_from_without_drawing():
    method = alone(RewardsInContext, template=" {name} {value:.0f}")
    method.draw_latents = None
    latents = torch.arange(4.0).view(2, 2, 1, 1, 1).expand(2, 2, *method.policy.latent_shape)
    scores = T([[[0.0, 1.0], [2.0, 1.0]], [[0.0, 3.0], [2.0, 3.0]]])
    collected = method.collect({"prompt": ["a", "b"], "index": [0, 1], "images_latents": latents, "scores": scores})
    assert collected["prompt"] == ["a dark -1 red -1", "a dark 1 red -1", "b dark -1 red 1", "b dark 1 red 1"]
    assert collected["image_latents"][:, 0, 0, 0].tolist() == [0, 1, 2, 3] and collected["weight"].tolist() == [1] * 4


def test_the_online_stage_asks_and_keeps_the_statistics(tmp_path):
    offline, t = make(RewardsInContext), trainer(tmp_path)
    t.fit(offline, prompts(2, 2))
    t.save_checkpoint(tmp_path / "offline.ckpt")
    with pytest.raises(ValueError, match="init_from"):
        make(RewardsInContext, online=True).initialise()
    online = alone(RewardsInContext, online=True, init_from=str(tmp_path / "offline.ckpt"), ask={"red": 2.0, "dark": 0.0})
    online.initialise()
    torch.testing.assert_close(online.moments, offline.moments)
    drawn, draw = [], online.draw_latents
    online.draw_latents = lambda p: drawn.append(p["prompt"]) or draw(p)
    collected = online.collect({"prompt": ["a"], "index": [0]})
    assert drawn[0] == ["a <dark> 0.0 <red> 2.0"] and len(collected["prompt"]) == 4
    assert all(p.startswith("a <dark> ") for p in collected["prompt"])
    torch.testing.assert_close(online.moments, offline.moments)


def test_sampling_asks_and_the_base_does_not():
    method = make(RewardsInContext, ask={"dark": 1.5, "red": -1.0})
    told, condition = [], method.policy.condition
    method.policy.condition = lambda p, columns=None: told.append(p) or condition(p)
    scores = []
    method.rewards = torch.nn.ModuleList([Darkness()])
    method.rewards[0].forward = lambda image, p: scores.append(p) or torch.zeros(len(p))
    method.sample({"prompt": ["a"], "index": [0], "seed": [0]})
    with method.policy.reference():
        method.sample({"prompt": ["a"], "index": [0], "seed": [0]})
    assert told == [["a <dark> 1.5 <red> -1.0"], ["a"]] and scores == [["a"], ["a"]]


def test_what_is_asked_must_be_what_is_told():
    with pytest.raises(ValueError, match="ask names red; conditions are dark, red"):
        make(RewardsInContext, still(), ask={"red": 1.0})
