"""MPS's training: preferences in several dimensions, each under its words."""

import pytest
import torch
from parts import T, alone, trainer
from reward_parts import clip_folder, photo

from lit_align.algorithms.reward_modeling.conditioned_preference import CONDITIONS, ConditionedPreference
from lit_align.rewards.mps import MPS

WORDS = {"overall": "red circle", "detail": "two squares"}


def batch(gaps=((1.0, -1.0), (0.0, 0.4), (-1.0, 0.0))):
    images = torch.stack([photo(32, 32, n=2, seed=i) for i in range(3)])  # (3, 2, 3, 32, 32)
    scores = torch.stack([0.5 + T(gaps) / 2, 0.5 - T(gaps) / 2], 1)
    return {"prompt": ["a red circle", "two squares", "a cross"], "index": [0, 1, 2], "columns": {}, "images": images, "scores": scores}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"))


def reward(clip):
    torch.manual_seed(0)
    return MPS(None, clip, threshold=0.6)


def method(clip):
    m = alone(ConditionedPreference(reward=reward(clip), conditions=WORDS))
    m.logged = {}
    m.log_mean = lambda name, value, n: m.logged.update({name: (float(value), n)})
    return m


def test_the_loss_is_the_kl_of_each_dimensions_labels(clip):
    m, b = method(clip), batch()
    with torch.no_grad():
        prompts, r = [p for p in b["prompt"] for _ in (0, 1)], []
        for words in WORDS.values():  # one condition at a time, as the reward is used
            m.reward.condition = m.reward.ids([words])
            r.append(m.reward(b["images"].flatten(0, 1), prompts))
        r = torch.stack(r, 1)
        r = r.view(3, 2, 2)  # image, dimension
        p = r.softmax(1)  # of the two images
        label = T([[1.0, 0.0], [0.5, 0.7], [0.0, 0.5]])
        both = torch.stack([label, 1 - label], 1)
        kl = torch.where(both > 0, both * (both.clamp(min=1e-9).log() - p.log()), 0.0).sum(1)
        torch.testing.assert_close(m.batch_loss(b), kl.mean(), atol=1e-5, rtol=1e-4)
    right = ((r[:, 0] - r[:, 1])[:, 0] * T([1.0, 0.0, -1.0]) > 0)[[0, 2]].float().mean().item()
    assert m.logged["train/accuracy/overall"] == (pytest.approx(right), 2) and m.logged["train/accuracy/detail"][1] == 2
    assert (r[..., 0] - r[..., 1]).abs().max() > 1e-4  # conditions differ


def test_a_condition_is_counted_by_nobody_and_dimensions_must_fit(clip):
    m = method(clip)
    assert m.reward.truncated is None
    with pytest.raises(ValueError, match="set --data.list_size 2 and as many --data.dimensions"):
        m.check(batch() | {"scores": torch.zeros(3, 2, 3)})
    assert list(CONDITIONS) == ["overall", "aesthetics", "alignment", "detail"]


def test_it_learns(clip, tmp_path):
    m = ConditionedPreference(reward=reward(clip), conditions=WORDS, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    m.losses = []
    original = m.loss
    m.loss = lambda b, stage: m.losses.append(original(b, stage)) or m.losses[-1]
    trainer(tmp_path).fit(m, torch.utils.data.DataLoader([batch()] * 20, batch_size=None))
    assert m.losses[-1] < 0.7 * m.losses[0]
    again = MPS(str(tmp_path / "reward/mps.safetensors"), str(tmp_path / "reward"), threshold=0.6)
    torch.testing.assert_close(again(photo(32, 32), ["a cross"]), m.reward.eval()(photo(32, 32), ["a cross"]), atol=1e-5, rtol=1e-4)
