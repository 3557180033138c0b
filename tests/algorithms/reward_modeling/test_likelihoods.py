"""The objectives of reward modelling against closed forms, enumeration and hand-made sums."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from parts import T
from torch import nn

from lit_align.algorithms.reward_modeling.bootstrap_ensemble import BootstrapEnsemble
from lit_align.algorithms.reward_modeling.bradley_terry import BradleyTerry
from lit_align.algorithms.reward_modeling.partitioned_preference import PartitionedPreference, log_partition_likelihood
from lit_align.algorithms.reward_modeling.plackett_luce import PlackettLuce
from lit_align.algorithms.reward_modeling.preference_mixture import PreferenceMixture
from lit_align.algorithms.reward_modeling.rao_kupper import RaoKupper
from lit_align.algorithms.reward_modeling.triplet import TripletPreference
from lit_align.rewards.reward import Reward


class Brightness(Reward):
    """w times an image's mean."""

    name, differentiable = "brightness", True

    def __init__(self, w=2.0):
        super().__init__()
        self.w = nn.Parameter(T(w))

    def forward(self, images, prompts):
        return self.w * images.mean((1, 2, 3))


def quiet(method, world_size=1):
    method.logged = {}
    method.log_mean = lambda name, value, n: method.logged.update({name: float(value)})
    method._trainer = SimpleNamespace(world_size=world_size)
    type(method).trainer = property(lambda self: self._trainer)
    return method


@pytest.fixture(autouse=True)
def trainers():
    yield
    for cls in (PreferenceMixture, BradleyTerry, RaoKupper, TripletPreference, PlackettLuce, PartitionedPreference, BootstrapEnsemble):
        if "trainer" in vars(cls):
            del cls.trainer


def flat(*means):
    """Images of these mean values, (B, 3, 4, 4), or lists of them."""
    return T(means)[..., None, None, None].expand(*T(means).shape, 3, 4, 4)


def pairs(win, lose, **more):
    return {"prompt": ["p"] * len(win), "index": list(range(len(win))), "win": flat(*win), "lose": flat(*lose), **more}


def lists(means, scores):
    return {"prompt": ["p"] * len(means), "index": [0], "images": flat(*means), "scores": T(scores)[..., None]}


def ranking_probability(w, order):
    rest, p = list(order), 1.0
    for i in order:
        p *= w[i] / sum(w[j] for j in rest)
        rest.remove(i)
    return p


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_partition_is_the_sum_over_the_rankings_that_agree(k):
    g = torch.Generator().manual_seed(k)
    r, score = 2 * torch.randn(8, k, generator=g), torch.randint(0, 3, (8, k), generator=g).float()
    got = log_partition_likelihood(r, score).exp()
    for row in range(8):
        w, s = r[row].exp().tolist(), score[row].tolist()
        agree = (o for o in itertools.permutations(range(k)) if all(s[a] >= s[b] for a, b in itertools.pairwise(o)))
        assert got[row].item() == pytest.approx(sum(ranking_probability(w, o) for o in agree), abs=1e-6)


def test_a_partition_of_extreme_weights_has_a_finite_likelihood_and_gradient():
    r = T([[40.0, -40.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).requires_grad_()
    found = log_partition_likelihood(r, T([[0.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    found.sum().backward()
    assert found[0].item() < -70 and found[1] == 0 and r.grad.isfinite().all() and r.grad[0, 0] < 0 < r.grad[0, 1] and not r.grad[1].any()


def test_rankings_without_ties_are_plackett_luces():
    batch = lists([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]], [[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    want = -sum(math.log(ranking_probability([math.exp(2 * m) for m in means], order)) for means, order in (([0.9, 0.1, 0.5], (0, 2, 1)), ([0.2, 0.3, 0.8], (1, 2, 0)))) / 2
    for method in (PlackettLuce, PartitionedPreference):
        method = quiet(method(reward=Brightness()))
        assert method.batch_loss(batch).item() == pytest.approx(want, abs=1e-5)
        assert method.logged["train/accuracy"] == pytest.approx(5 / 6)


def test_rao_kupper_is_a_distribution_and_its_loss_the_likelihood():
    method = quiet(RaoKupper(reward=Brightness(), theta=3.0))
    assert method.theta.item() == pytest.approx(3.0)
    win, lose = [0.9, 0.4, 0.5], [0.2, 0.6, 0.5]
    a, b = ([math.exp(2 * x) for x in side] for side in (win, lose))
    first = [x / (x + 3 * y) for x, y in zip(a, b)]
    second = [y / (y + 3 * x) for x, y in zip(a, b)]
    tie = [(3**2 - 1) * x * y / ((x + 3 * y) * (y + 3 * x)) for x, y in zip(a, b)]  # Rao & Kupper 1967
    assert all(sum(p) == pytest.approx(1) for p in zip(first, second, tie))
    loss = lambda label: method.batch_loss(pairs(win, lose, label=T(label))).item()
    assert loss([1.0, 1.0, 1.0]) == pytest.approx(-sum(map(math.log, first)) / 3, abs=1e-5)
    assert loss([0.5, 1.0, 0.5]) == pytest.approx(-(math.log(tie[0]) + math.log(first[1]) + math.log(tie[2])) / 3, abs=1e-5)
    method.batch_loss(pairs(win, lose, label=T([0.5, 0.5, 0.5]))).backward()
    assert method.log_excess.grad < 0  # ties widen the threshold
    with pytest.raises(ValueError, match="theta is 1.0"):
        RaoKupper(reward=Brightness(), theta=1.0)


def test_triplets_are_of_squared_distances_on_the_sphere():
    g = torch.Generator().manual_seed(0)
    prompt, win, lose = F.normalize(torch.randn(3, 6, 8, generator=g), dim=2)

    class Cosine(Brightness):
        def forward(self, images, prompts):
            return (torch.cat([win, lose]) * torch.cat([prompt, prompt])).sum(1) * (self.w / self.w)

    want = F.relu((prompt - win).square().sum(1) - (prompt - lose).square().sum(1) + 0.3).mean()
    batch = pairs([0.0] * 6, [0.0] * 6)
    method = quiet(TripletPreference(reward=Cosine()))
    method.scores = lambda images, batch: torch.stack(method.reward(None, None).chunk(2), 1)
    method.reward.__class__.__call__ = lambda self, *a: self.forward(*a)
    torch.testing.assert_close(method.batch_loss(batch), want)


def test_a_cosine_is_scaled_and_weights_count():
    batch = pairs([0.9, 0.4], [0.2, 0.6], weight=T([1.5, 0.5]))
    d = 100 * 2 * T([0.7, -0.2])
    torch.testing.assert_close(quiet(BradleyTerry(reward=Brightness(), scale=100)).batch_loss(batch), -(T([1.5, 0.5]) * F.logsigmoid(d)).mean())


def mixture(**kwargs):
    return quiet(PreferenceMixture(rewards={"a": Brightness(3.0), "b": Brightness(-3.0)}, annotator="who", **kwargs))


def test_the_e_step_is_bayes_rule_over_all_pairs_of_an_annotator():
    method = mixture(fade=1.0)
    method.evidence = {"x": [0.0, 0.0], "y": [0.0, 0.0]}
    batch = pairs([0.9, 0.3, 0.2], [0.2, 0.5, 0.7], columns={"who": ["x", "y", "y"]})
    log_p = F.logsigmoid(T([[3.0, -3.0]]) * T([0.7, -0.2, -0.5])[:, None])  # (3, 2)
    loss = method.batch_loss(batch)
    evidence = torch.stack([log_p[0], log_p[1] + log_p[2]])
    torch.testing.assert_close(T([method.evidence["x"], method.evidence["y"]]), evidence)
    pi = torch.cat([evidence.softmax(1), T([[0.5, 0.5]])]).mean(0)
    group = (evidence + pi.log()).softmax(1)
    torch.testing.assert_close(method.groups(["x", "y"]), group)
    torch.testing.assert_close(method.groups(["new"]), pi[None])
    torch.testing.assert_close(loss, -(group[[0, 1, 1]] * log_p).sum(1).mean())
    assert group[0, 0] > 0.7 and group[1, 1] > 0.6  # x likes bright images, y dark ones
    again = mixture()
    again.set_extra_state(method.get_extra_state())
    torch.testing.assert_close(again.groups(["x"]), group[:1])


def test_validation_learns_nothing_of_annotators_and_old_evidence_fades():
    method, batch = mixture(fade=0.5), pairs([0.9], [0.2], columns={"who": [7]})
    method.loss(batch, "val")
    assert method.evidence == {}
    method.evidence = {"7": [1.0, 3.0]}
    method.loss(batch, "train")
    torch.testing.assert_close(T(method.evidence["7"]), T([0.5, 1.5]) + F.logsigmoid(T([2.1, -2.1])))
    with pytest.raises(ValueError, match="annotator: the data has no column `who`; its columns are none."):
        method.check(pairs([0.9], [0.2], columns={}))


def test_members_of_an_ensemble_see_poisson_resamples_that_do_not_change():
    method = quiet(BootstrapEnsemble(rewards={n: Brightness(w) for n, w in zip("abc", (1.0, 2.0, 4.0))}))
    times = method.counts(list(range(4000))).float()
    assert torch.equal(method.counts([5, 5])[0], method.counts([5])[0]) and times.mean(0).sub(1).abs().max() < 0.06
    assert times.var(0).sub(1).abs().max() < 0.1 and torch.corrcoef(times.T).triu(1).abs().max() < 0.06
    batch, w = pairs([0.9, 0.4], [0.2, 0.6]), T([1.0, 2.0, 4.0])
    margin = T([0.7, -0.2])[:, None] * w
    torch.testing.assert_close(method.batch_loss(batch), -(times[:2] * F.logsigmoid(margin)).mean())
    assert method.logged["train/disagreement"] == pytest.approx(margin.std(1, correction=0).mean().item())
    torch.testing.assert_close(method.loss(batch, "val"), -F.logsigmoid(margin).mean())
