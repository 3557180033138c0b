"""Heat maps: formulas of the MIT benchmark written out, and the bounds that each has."""

import numpy as np
import pytest
import scipy
import torch

from lit_align.metrics.saliency import CC, KLD, NSS, SIM, AUCJudd

G = torch.Generator().manual_seed(0)
P = torch.rand(2, 9, 11, generator=G)
H = torch.rand(2, 9, 11, generator=G)
H = H * (H > 0.7)


def measured(cls, p=P, h=H):
    metric = cls()
    metric.update(p, h)
    found = {k: v.item() for k, v in metric.compute().items()}
    assert found[f"{metric.name}/maps"] == len(p)
    return found[metric.name]


def judd(p, h):
    """Thresholds at each fixated value, highest first."""
    fixated, others = np.sort(p[h > 0])[::-1], p[h <= 0]
    tp = [0, *((i + 1) / len(fixated) for i in range(len(fixated))), 1]
    fp = [0, *((others >= t).mean() for t in fixated), 1]
    return np.trapezoid(tp, fp)


def by_hand(name, p, h):
    q, g = p / p.sum(), h / h.sum()
    return {
        "nss": ((p - p.mean()) / p.std(ddof=1))[h > 0].mean(),
        "kld": (g * np.log(1e-8 + g / (q + 1e-8))).sum(),
        "sim": np.minimum(q, g).sum(),
        "cc": scipy.stats.pearsonr(p.ravel(), h.ravel()).statistic,
        "auc_judd": judd(p, h),
    }[name]


@pytest.mark.parametrize("cls", [NSS, KLD, SIM, CC, AUCJudd])
def test_as_written_out(cls):
    expected = np.mean([by_hand(cls.name, p, h) for p, h in zip(P.double().numpy(), H.double().numpy())])
    assert measured(cls) == pytest.approx(expected, rel=1e-5)


def test_bounds_and_direction():
    assert measured(CC, H) == pytest.approx(1, abs=1e-4) and measured(SIM, H) == pytest.approx(1) and measured(KLD, H) == pytest.approx(0, abs=1e-5)
    assert measured(AUCJudd, H) == pytest.approx(1, abs=0.01) and measured(AUCJudd, 1 - H) == pytest.approx(0, abs=0.02)
    flat = torch.full_like(P, 0.3)
    assert measured(NSS, flat) == 0 and measured(AUCJudd, flat) == pytest.approx(0.5) and measured(CC, flat) == pytest.approx(0, abs=1e-6)
    assert measured(NSS, H) > 1 > 0 > measured(NSS, 1 - H) and measured(KLD, 1 - H) > measured(KLD, flat) > 0


def test_empty_maps_are_counted_apart_and_sizes_must_agree():
    metric = SIM()
    metric.update(torch.cat([P, P[:1]]), torch.cat([H, torch.zeros(1, 9, 11)]))
    found = metric.compute()
    assert (found["sim/maps"].item(), found["sim/empty"].item()) == (2, 1) and found["sim"].item() == pytest.approx(measured(SIM))
    with pytest.raises(ValueError, match="bring them to one size"):
        metric.update(P, H[:, :5])
