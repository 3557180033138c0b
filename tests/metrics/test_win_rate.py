"""Medians over a prompt's samples, ties as half, Wilson's interval."""

import pytest
import scipy
import torch

from lit_align.metrics.win_rate import WinRate


def test_medians_win_and_the_interval_is_wilsons():
    metric = WinRate()
    prompts = ["a"] * 3 + ["b"] * 3 + ["c"] + ["d"]
    metric.update(torch.tensor([0.0, 2.0, 9.0, 1.0, 1.0, 1.0, 5.0, 0.0]), torch.tensor([1.0, 1.5, 1.5, 1.0, 1.0, 7.0, 4.0, 1.0]), prompts)
    found = {k: v.item() for k, v in metric.compute().items()}
    assert found["win_rate"] == pytest.approx((1 + 0.5 + 1 + 0) / 4) and found["win_rate/prompts"] == 4  # medians 2 > 1.5, 1 = 1


@pytest.mark.parametrize("wins,n", [(7, 10), (1, 40), (0, 5)])
def test_wilson_as_scipy(wins, n):
    metric = WinRate()
    metric.update(torch.tensor([1.0] * wins + [0.0] * (n - wins)), torch.full((n,), 0.5), [str(i) for i in range(n)])
    low, high = scipy.stats.binomtest(wins, n).proportion_ci(0.95, "wilson")
    found = metric.compute()
    assert (found["win_rate/low"].item(), found["win_rate/high"].item()) == pytest.approx((low, high), abs=2e-4)
