"""MaxMin: the worst off annotator decides."""

import pytest
import torch
from parts import T, prompts, trainer
from preferences import still
from weighted import alone, make

from lit_align.algorithms.reward_weighted.max_min import MaxMin


def test_the_worst_off_annotator_decides():
    method = alone(MaxMin, policy=still(), weighting="sparse", per_prompt=True, quantile=1.0)
    reward = T([[[0.9, 0.1], [0.2, 0.3], [0.5, 0.0]]])  # means 0.53, 0.13
    assert method.weights(reward).tolist() == [[0.0, 3.0, 0.0]]
    assert method.logged["train/annotator/dark"] == 0 and method.logged["train/annotator/red"] == 1
    assert method.weights(1 - reward).tolist() == [[0.0, 3.0, 0.0]]  # dark's turn: 0.1, 0.8, 0.5
    assert method.logged["train/annotator/dark"] == 1


def test_exponentiated_gradient_shifts_to_the_worse_off():
    method = alone(MaxMin, policy=still(), rate=2.0)
    reward = T([[[0.6, 0.1], [0.2, 0.3]]])  # means 0.4, 0.2
    for steps in (1, 2):
        weight = method.weights(reward)
        ratio = torch.exp(T(2.0 * (0.4 - 0.2) * steps))
        share = T([1 / (1 + ratio), ratio / (1 + ratio)])
        assert method.logged["train/annotator/red"] == pytest.approx(share[1].item())
        combined = (reward * share).sum(-1)
        torch.testing.assert_close(weight, 2 * torch.softmax(0.2 * combined, 1))


def test_annotators_weights_survive_a_checkpoint(tmp_path):
    method, t = make(MaxMin, rate=3.0, samples_per_prompt=2), trainer(tmp_path)
    t.fit(method, prompts(2, 2))
    t.save_checkpoint(tmp_path / "some.ckpt")
    (logits,) = method.get_extra_state()
    assert logits.softmax(0).max() > 0.5
    resumed = make(MaxMin, rate=3.0, samples_per_prompt=2)
    seen, weights = [], resumed.weights
    resumed.weights = lambda r: seen.append(resumed.get_extra_state()[0].clone()) or weights(r)
    trainer(tmp_path, max_epochs=2).fit(resumed, prompts(2, 2), ckpt_path=tmp_path / "some.ckpt")
    torch.testing.assert_close(seen[0], logits)
    fresh = make(MaxMin, init_from=str(tmp_path / "some.ckpt"))
    fresh.initialise()
    torch.testing.assert_close(fresh.get_extra_state()[0], seen[0])
