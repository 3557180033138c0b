"""DiffusionRPO against a sum over all winners and losers."""

import math

import pytest
import torch
import torch.nn.functional as F
from parts import T
from preferences import Brightness, attached, batch, pair, still

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.preference import Errors
from lit_align.algorithms.preference.rpo import DiffusionRPO


def make(cls=DiffusionRPO, **kwargs):
    return attached(cls(policy=still(scale=0.05), **kwargs))


def errors(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Errors(*torch.rand(4, n, generator=g))


def test_the_loss_is_the_weighted_sum_over_all_losers():
    method, e = make(beta=3.0), errors()
    w = T([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    method.weights = lambda batch: w
    want = [
        sum(w[i, j] * math.log1p(math.exp(-3 * ((e.ref_win[i] - e.win[i]) - (e.ref_lose[j] - e.lose[j])))) for j in range(3))
        for i in range(3)
    ]
    torch.testing.assert_close(method.loss(e), T(want))


@pytest.mark.parametrize("features", [None, Brightness()], ids=["captions", "images"])
def test_weights_are_a_softmax_of_the_cosines(features):
    method = make(tau=0.05, features=features)
    z = torch.randn(2, 3, *method.policy.latent_shape)
    data = {"prompt": ["a", "b c", "d"], "win_latents": z[0], "lose_latents": z[1]}
    summary = method.policy.summary(method.policy.condition(data["prompt"]))
    cosine = torch.stack([F.cosine_similarity(summary, row[None]) for row in summary])
    if features:
        win, lose = (F.adaptive_avg_pool2d(method.policy.decode(x), 16).flatten(1) for x in z)
        cosine = (cosine + torch.stack([F.cosine_similarity(lose, row[None]) for row in win])) / 2
    want = torch.exp(cosine / 0.05)
    torch.testing.assert_close(method.weights(data), want / want.sum(1, keepdim=True), atol=1e-4, rtol=1e-3)


def test_the_colder_the_more_a_winner_is_compared_with_its_own_loser():
    data = batch(still(scale=0.05)) | {"prompt": ["a red circle", "two blue squares", "a red circle"]}
    w = make(tau=1e-3).weights(data)
    torch.testing.assert_close(w, T([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(make(tau=1e4).weights(data), torch.full((3, 3), 1 / 3), atol=1e-3, rtol=0)


def test_one_pair_is_diffusion_dpo():
    e = pair(batch={"prompt": ["a"]})
    torch.testing.assert_close(make().loss(e), make(DiffusionDPO).loss(e))


def test_a_batch_shares_one_time_and_one_noise():
    method = make()
    t, eps = method.noise(torch.zeros(6, *method.policy.latent_shape), {})
    assert len(t.unique()) == 1 and len(t) == 6 and (eps == eps[:1]).all() and eps.shape[0] == 6 and eps.std() > 0.5
