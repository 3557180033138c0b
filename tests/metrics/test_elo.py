"""Ratings against scipy's maximum of the likelihood, and closed forms."""

import math

import numpy as np
import pytest
import scipy
import torch
from metric_parts import MODELS, games

from lit_align.metrics.elo import Elo, EloCorrelation


def test_two_models_have_the_odds_as_their_gap():
    elo = Elo(["good", "bad"])
    elo.update(torch.zeros(4), torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    found = elo.compute()
    assert (found["elo/good"] - found["elo/bad"]).item() == pytest.approx(400 * math.log10(3), rel=1e-5)
    assert (found["elo/good"] + found["elo/bad"]).item() == pytest.approx(2000)


def test_ratings_maximise_the_likelihood():
    first, second, outcome, _ = games(200)
    elo = Elo(MODELS)
    elo.update(first, second, outcome)

    def loss(r):
        gap = r[first.numpy()] - r[second.numpy()]
        o = outcome.double().numpy()
        return -(o * -np.logaddexp(0, -gap) + (1 - o) * -np.logaddexp(0, gap)).sum() + 1e-9 * r.sum() ** 2

    best = scipy.optimize.minimize(loss, np.zeros(4), tol=1e-12).x
    expected = 1000 + 400 / math.log(10) * (best - best.mean())
    assert [x.item() for x in elo.compute().values()] == pytest.approx(expected.tolist(), abs=0.05)


def test_ratings_at_infinity_are_refused():
    elo = Elo(["a", "b", "c"])
    elo.update(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="b beat a neither directly nor through others"):
        elo.compute()


def test_correlation_of_two_judges():
    first, second, human, scorer = games(200)
    metric, a, b = EloCorrelation(MODELS), Elo(MODELS), Elo(MODELS)
    metric.update(first, second, human, scorer)
    a.update(first, second, human)
    b.update(first, second, scorer)
    mine = [np.array([float(x) for x in elo.compute().values()]) for elo in (a, b)]
    found = metric.compute()
    assert found["elo_correlation/spearman"].item() == pytest.approx(scipy.stats.spearmanr(*mine).statistic, abs=1e-6)
    assert found["elo_correlation/kendall"].item() == pytest.approx(scipy.stats.kendalltau(*mine).statistic, abs=1e-6)
    again = EloCorrelation(MODELS)
    again.update(first, second, human, human)
    assert again.compute()["elo_correlation/spearman"].item() == pytest.approx(1)
    again.reset()
    again.update(first, second, human, 1 - human)
    assert again.compute()["elo_correlation/kendall"].item() == pytest.approx(-1)
