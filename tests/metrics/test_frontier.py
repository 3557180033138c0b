"""The fit recovers the curve that made the points."""

import math

import pytest
import torch

from lit_align.metrics.frontier import KLRewardFrontier, best_of_n_kl


@pytest.mark.parametrize("form,curve,peak", [
    ("bon", lambda d: d * (2 - 0.25 * d), (2 / 0.5) ** 2),
    ("rl", lambda d: d * (2 - 0.8 * d.log()), math.exp(2 / 0.8 - 1) ** 2),
])  # fmt: skip
def test_fit(form, curve, peak):
    metric, d = KLRewardFrontier(form), torch.linspace(0.2, 9, 12)
    metric.update(d**2, curve(d))
    found = {k.removeprefix("frontier/"): v.item() for k, v in metric.compute().items()}
    assert found["alpha"] == pytest.approx(2, rel=1e-4) and found["beta"] == pytest.approx(0.25 if form == "bon" else 0.8, rel=1e-4)
    assert found["peak_kl"] == pytest.approx(peak, rel=1e-3) and found["explained"] == pytest.approx(1, abs=1e-5)
    assert found["best"] == pytest.approx(curve(d).max().item(), rel=1e-5) and found["best_kl"] == pytest.approx(d[curve(d).argmax()].item() ** 2, rel=1e-5)


def test_a_reward_that_only_rises_has_no_peak_and_the_base_is_refused():
    metric = KLRewardFrontier("bon")
    metric.update(torch.tensor([1.0, 4.0, 9.0]), torch.tensor([1.0, 2.5, 5.0]))
    assert metric.compute()["frontier/peak_kl"].isnan()
    with pytest.raises(ValueError, match="leave out the base model"):
        metric.update(torch.tensor([0.0]), torch.tensor([0.0]))


def test_best_of_n_is_bounded():
    assert best_of_n_kl(1) == 0 and best_of_n_kl(4) == pytest.approx(math.log(4) - 3 / 4)
