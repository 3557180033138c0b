"""RAFT: the best of each prompt's samples."""

import pytest
from parts import T
from weighted import alone, scored

from lit_align.algorithms.reward_weighted.raft import RAFT


def test_rafts_batches_are_each_prompts_best():
    method = alone(RAFT, samples_per_prompt=3, minibatch=4, updates=3)
    # drawn for a, b, then again: a has 0, 2, 4 and b has 1, 3, 5
    scored(method, T([0.1, 0.9, 0.8, 0.2, 0.3, 0.4]))
    collected = method.collect({"prompt": ["a", "b"], "index": [0, 1]})
    assert collected["prompt"] == ["a"] * 3 + ["b"] * 3
    assert collected["image_latents"][:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    parts = [m for (m,) in method.optimizer_steps(collected)]
    assert [len(part["prompt"]) for part in parts] == [4, 4, 4]
    for part in parts:
        seen = set(zip(part["prompt"], part["image_latents"][:, 0, 0, 0].tolist()))
        assert seen == {("a", 2.0), ("b", 1.0)} and part["weight"].tolist() == pytest.approx([1.0] * 4)
    assert method.logged["train/kept"] == pytest.approx(1 / 3)
    assert method.logged["train/effective_sample_size"] == pytest.approx(2)
