import numpy as np
import pytest
import torch
from hooked import SEEDS, at, draw, started, still
from scipy.spatial.distance import jensenshannon

from lit_align.steering.attention_loss import smoothed
from lit_align.steering.divide_bind import DivideBind, total_variation
from lit_align.steering.phrases import Phrase

PROMPTS = ["a red circle and a dog", "a dog"]


def hook(**kwargs):
    return DivideBind(["circle", "dog"], ["red"], **({"cell": 2} | kwargs))


def test_total_variation_of_a_stripe():
    """Rows 0 1 1: one of two vertical differences is 1; the release compares the last row with rows 1 and 2."""
    stripe = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert total_variation(stripe).item() == 0.5 and total_variation(stripe, legacy=True).item() == 0.0
    assert total_variation(stripe.T).item() == 0.5
    other = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert total_variation(other).item() == 1.0 and total_variation(other, legacy=True).item() == 0.5


def test_the_loss_is_of_the_worst_object_and_binds_attributes():
    maps = torch.rand(4, 4, 5, generator=torch.Generator().manual_seed(0))
    phrases = [Phrase([1], [[2]]), Phrase([3, 4], [])]
    of = lambda tokens: smoothed(maps[..., tokens].mean(-1))
    tv = [total_variation(of(p.object)).item() for p in phrases]
    thing, attribute = of([1]).flatten().double().numpy(), of([2]).flatten().double().numpy()
    soft = lambda v: np.exp(v) / np.exp(v).sum()
    p, q = soft(thing), soft(attribute / attribute.max() * thing.max())
    cut = (0.3 if tv[0] < 0.1 else 0.2) * p.max()
    gap = jensenshannon(np.maximum(p - cut, 0) + 1e-5, np.maximum(q - cut, 0) + 1e-5) ** 2
    for progress, c in ((0.0, 1.0), (0.2, 5.0), (0.45, 10.0)):
        loss, score = hook().judge_maps(maps, phrases, progress)
        assert loss.item() == pytest.approx(max(-tv[0] + c * gap, -tv[1]), rel=1e-4) and score.item() == pytest.approx(min(tv))
    loss, _ = hook(bind=False).judge_maps(maps, phrases, 0.0)
    assert loss.item() == pytest.approx(-min(tv)) and gap > 1e-5


@pytest.mark.parametrize("size,better", [(1.0, True), (-1.0, False)])
def test_it_raises_the_smallest_variation(size, better):
    policy, mine = still(), hook(step_size=size, thresholds={}, bind=False)
    x, t, _ = at(policy)
    state, sampler = started(policy, mine, x.clone(), t, PROMPTS)
    before = mine.gradient(policy, state, torch.arange(2))[1]
    mine.before_step(policy, state, sampler)
    assert ((mine.gradient(policy, state, torch.arange(2))[1] > before) == better).all()


def test_step_size_0_changes_nothing_to_the_last_bit():
    assert torch.equal(draw(still(), hook(step_size=0.0), prompts=PROMPTS), draw(still(), prompts=PROMPTS))
    assert not torch.allclose(draw(still(), hook(), prompts=PROMPTS, seeds=SEEDS), draw(still(), prompts=PROMPTS), atol=1e-2)
