"""Counts of pairs against a hand count and against a loop."""

import itertools

import pytest
import torch

from lit_align.metrics.accuracy import PairwiseAccuracy


def counts(lists):
    """Every figure by loops over pairs."""
    pairs, per_prompt, kept = [], [], []
    for scores, human in lists:
        mine = [(s - t, (g > h) - (g < h)) for (s, g), (t, h) in itertools.combinations(zip(scores, human), 2)]
        pairs += mine
        judged = [m * y > 0 for m, y in mine if y]
        per_prompt += [sum(judged) / len(judged)] if judged else []
        kept.append(sum(m * y >= 0 for m, y in mine) / len(mine))
    c, d = sum(m * y > 0 for m, y in pairs), sum(m * y < 0 for m, y in pairs)
    tied = sum(m == 0 and y != 0 for m, y in pairs)
    best = max(sum((abs(m) <= e and y == 0) or (abs(m) > e and m * y > 0) for m, y in pairs) for e in [0, *(abs(m) for m, _ in pairs)])
    n = len(pairs)
    found = {"strict": c / (c + d + tied), "half": (c + tied / 2) / (c + d + tied), "per_prompt": sum(per_prompt) / len(per_prompt)}
    found |= {"not_inverted": sum(kept) / len(kept), "with_ties": best / n, "tau_23": (2 * best - n) / n}
    return found | {"pairs": n, "ties": sum(y == 0 for _, y in pairs)}


def measured(lists):
    metric = PairwiseAccuracy()
    for scores, human in lists:
        metric.update(torch.tensor(scores), torch.tensor(human))
    return {k.removeprefix("accuracy/"): v.item() for k, v in metric.compute().items()}


def test_by_hand():
    """Ranks 1, 2, 2, 3 (higher is better: 3, 2, 2, 1) with a tie of the scores of the first two."""
    found = measured([([0.9, 0.9, 0.5, 0.1], [3.0, 2.0, 2.0, 1.0])])
    assert found["strict"] == pytest.approx(4 / 5) and found["half"] == pytest.approx(4.5 / 5)
    assert found["not_inverted"] == 1 and (found["pairs"], found["ties"]) == (6, 1)
    assert found["with_ties"] == pytest.approx(4 / 6) and found["tau_23"] == pytest.approx(2 / 6)


def test_as_loops_count_and_in_the_right_direction():
    g = torch.Generator().manual_seed(0)
    lists = [((torch.randint(0, 6, (k,), generator=g) / 4).tolist(), torch.randint(0, 3, (k,), generator=g).float().tolist()) for k in (2, 5, 4, 3, 6, 2)]
    assert measured(lists) == pytest.approx(counts(lists))
    same = [(human, human) for _, human in lists]
    assert measured(same)["strict"] == measured(same)["with_ties"] == 1
    assert measured([([-h for h in human], human) for _, human in lists])["strict"] == 0


def test_what_was_not_judged_does_not_count_and_a_missing_score_is_refused():
    nan = float("nan")
    assert measured([([0.1, 0.2, 0.3], [1.0, nan, 2.0])])["pairs"] == 1
    with pytest.raises(ValueError, match="a score is NaN"):
        measured([([0.1, nan], [1.0, 2.0])])
    with pytest.raises(ValueError, match="2 scores and 3 judgements"):
        measured([([0.1, 0.2], [1.0, 2.0, 3.0])])
