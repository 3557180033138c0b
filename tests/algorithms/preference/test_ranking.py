"""What lists give a loss."""

import itertools
import math
from unittest import mock

import pytest
import torch
from parts import T, spy
from preferences import attached, batch, ranked, still

from lit_align.algorithms.preference.capo import CaPO
from lit_align.algorithms.preference.lipo import LiPO
from lit_align.algorithms.preference.pl_dpo import PlackettLuceDPO
from lit_align.algorithms.preference.pro import PRO
from lit_align.algorithms.preference.rankdpo import RankDPO
from lit_align.algorithms.preference.ranking import best, ranks
from lit_align.algorithms.preference.rrhf import RRHF


def test_tied_images_do_not_compete(policy):
    pl = PlackettLuceDPO(policy=policy, beta=1.0)
    tied = pl.loss(ranked([0.7, -0.1, 0.4], [1, 1, 0])).item()
    assert tied == pytest.approx(sum(math.log1p(math.exp(-(a - 0.4))) for a in (0.7, -0.1)), abs=1e-8)
    for method in (pl, LiPO(policy=policy), RankDPO(policy=policy)):
        assert method.loss(ranked([0.7, -0.1, 0.4], [1, 1, 1])).item() == 0


@pytest.mark.parametrize("cls", [PlackettLuceDPO, LiPO, RankDPO, CaPO, PRO, RRHF], ids=lambda c: c.__name__)
def test_each_list_shares_a_timestep_and_every_image_has_its_noise(cls):
    method = attached(cls(policy=still()))
    x = torch.randn(3, 1, *method.policy.latent_shape).expand(3, 4, -1, -1, -1)  # equal images
    with spy(method.policy, "denoise") as calls:
        method.batch_loss(batch(method.policy, images_latents=x))
    x_t, t = calls.call_args_list[0].args[0].unflatten(0, (3, 4)), calls.call_args_list[0].args[1].view(3, 4)
    assert (t == t[:, :1]).all() and len(set(t[:, 0].tolist())) > 1
    assert not any(torch.allclose(x_t[:, i], x_t[:, j]) for i, j in itertools.combinations(range(4), 2))


def test_ties_share_their_rank_and_the_best_share_their_weight():
    assert ranks(T([[3.0, 1.0, 3.0, 0.0]])).tolist() == [[1.5, 3.0, 1.5, 4.0]]
    assert best(T([[3.0, 1.0, 3.0, 0.0]])).tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_the_logged_accuracy_counts_pairs_that_differ(policy):
    method = attached(PlackettLuceDPO(policy=policy))
    r = ranked([0.3, 0.1, 0.2, 0.2], [2, 1, 1, 0])  # 0 right of 1, 2, 3; 1 wrong of 3; 2 ties with 3
    with mock.patch.object(method, "ranked", lambda batch: r):
        method.batch_loss({})
    assert method.logged["train/implicit_accuracy"] == pytest.approx((3 + 0 + 0.5) / 5)
