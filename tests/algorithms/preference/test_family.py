"""What every preference loss has in common. The methods are found by walking the subclasses: a new file is tested
unasked, and says here only where it differs."""

import inspect
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from parts import T, by_name, methods_of, trained
from preferences import Brightness, attached, batch, still

from lit_align.algorithms.preference.capo import CaPO
from lit_align.algorithms.preference.dspo import DSPO
from lit_align.algorithms.preference.flow_dpo import FlowDPO
from lit_align.algorithms.preference.gpo import GPO
from lit_align.algorithms.preference.inpo import InPO
from lit_align.algorithms.preference.ipo import DiffusionIPO
from lit_align.algorithms.preference.linear_dpo import LinearDPO
from lit_align.algorithms.preference.lipo import LiPO
from lit_align.algorithms.preference.mapo import MaPO
from lit_align.algorithms.preference.nash_md import NashMD
from lit_align.algorithms.preference.npo import DiffusionNPO
from lit_align.algorithms.preference.orpo import DiffusionORPO
from lit_align.algorithms.preference.preference import Preference
from lit_align.algorithms.preference.pro import PRO
from lit_align.algorithms.preference.rankdpo import RankDPO
from lit_align.algorithms.preference.ranking import Ranking
from lit_align.algorithms.preference.rrhf import RRHF
from lit_align.algorithms.preference.self_dpo import SelfDPO
from lit_align.algorithms.preference.simpo import DiffusionSimPO
from lit_align.algorithms.preference.smpo import SmPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import select_rows
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

LN2 = math.log(2)
FAMILIES = [StableDiffusion, StableDiffusionXL, StableDiffusion3]
concrete = lambda base: [cls for cls in methods_of(base) if not getattr(cls.loss, "__isabstractmethod__", False)]
PAIRS, LISTS = concrete(Preference), concrete(Ranking)

# the loss of a pair of equal images at policy = reference, where it is not ln 2, from the method and its errors
STARTS = {
    DiffusionIPO: lambda m, e: 1.0,
    GPO: lambda m, e: 1.0,
    NashMD: lambda m, e: 0.36,  # (2 P - 1)^2 at the batch's P
    DSPO: lambda m, e: e.win,
    LinearDPO: lambda m, e: 0.0,
    MaPO: lambda m, e: e.win + 0.1 * LN2,
    DiffusionORPO: lambda m, e: e.win + 0.1 * LN2,
    DiffusionSimPO: lambda m, e: math.log1p(math.exp(0.5)),
}
# the same for a list of two, scored 1 and 0
PLACES = 1 / LN2 - 1 / math.log(3)  # what NDCG loses if the two change places
RANKED_STARTS = {
    LiPO: lambda m, r: PLACES * LN2,
    RankDPO: lambda m, r: PLACES * LN2,
    CaPO: lambda m, r: math.tanh(0.5) ** 2,  # sigmoid(1) - sigmoid(-1)
    PRO: lambda m, r: LN2 + r.error[:, 0],
    RRHF: lambda m, r: r.error[:, 0],
}
OPTIONS = {InPO: {"eta": 0.0}, SmPO: {"eta": 0.0, "reward_range": (0.0, 1.0), "gamma": 1.0}}  # no noise of each image's own
BACKWARDS = {DiffusionNPO}  # learns the opposite on purpose
REWARD_DECIDES = {SmPO}  # its label, not the batch, says which image is better
OWN_LOSERS = {SelfDPO}  # other images of the batch


@cache
def build(cls, family=None, scale=0.0):
    """A method on a policy that is shared: nothing here trains."""
    policy = still(family or (StableDiffusion3 if cls is FlowDPO else StableDiffusion), scale)
    wanted = {"reward": Brightness(), "rollout": Sampler(2, 1.0)}
    given = {p for base in cls.__mro__ if "__init__" in vars(base) for p in inspect.signature(base.__init__).parameters}
    return attached(cls(policy=policy, **{k: v for k, v in wanted.items() if k in given}, **OPTIONS.get(cls, {})))


def latents(method, n=1, seed=0):
    """Two different images of each of n prompts, as latents, with what single methods want besides."""
    win, lose = torch.randn(2, n, *method.policy.latent_shape, generator=torch.Generator().manual_seed(seed))
    rows = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "p": torch.full((n,), 0.8)}
    return rows | {"win_latents": win, "lose_latents": lose}


def lists(method, scores, seed=0):
    """Lists of images as latents, with scores (B, K)."""
    scores = T(scores)
    x = torch.randn(*scores.shape, *method.policy.latent_shape, generator=torch.Generator().manual_seed(seed))
    rows = {"prompt": [f"p{i}" for i in range(len(scores))], "index": list(range(len(scores)))}
    return rows | {"images_latents": x, "scores": scores[..., None]}


def seeded(f, batch):
    torch.manual_seed(3)
    return f(batch)


def gradient(method, loss):
    grads = torch.autograd.grad(loss.sum(), trained(method), allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def test_the_walk_finds_the_files():
    assert {DiffusionIPO, NashMD, SmPO} <= set(PAIRS) and {CaPO, PRO} <= set(LISTS)
    assert not {Preference, Ranking} & {*PAIRS, *LISTS} and len(PAIRS) >= 21 and len(LISTS) >= 6


@pytest.mark.parametrize("cls", PAIRS, **by_name)
def test_the_loss_of_equal_images_starts_at_ln_2_or_where_its_formula_says(cls):
    method = build(cls)
    data = latents(method, 2)
    data["lose_latents"] = data["win_latents"]
    e = seeded(method.errors, data)
    loss = method.loss(e)
    want = STARTS.get(cls, lambda m, e: LN2)(method, e)
    torch.testing.assert_close(loss, want + torch.zeros(2), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", LISTS, **by_name)
def test_the_loss_of_a_list_of_two_equal_images_starts_at_ln_2_or_where_its_formula_says(cls):
    method = build(cls)
    data = lists(method, [[1.0, 0.0]])
    data["images_latents"] = data["images_latents"][:, :1].expand(-1, 2, -1, -1, -1)
    r = seeded(method.ranked, data)
    r = r._replace(error=r.error[:, :1].expand(-1, 2), ref_error=r.ref_error[:, :1].expand(-1, 2))  # the noises differ
    want = RANKED_STARTS.get(cls, lambda m, r: LN2)(method, r)
    torch.testing.assert_close(method.loss(r), want + torch.zeros(1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES, **by_name)
@pytest.mark.parametrize("cls", PAIRS + LISTS, **by_name)
def test_gradient_reaches_what_is_trained_and_nothing_else(cls, family):
    """LoRA's B; A starts with zero gradient."""
    if cls is FlowDPO and family is not StableDiffusion3:
        with pytest.raises(ValueError, match="velocities"):
            build(cls, family)
        return
    method = build(cls, family)
    data = batch(method.policy, p=torch.full((3,), 0.8))
    loss = seeded(method.batch_loss, data)
    if cls in PAIRS and cls.uses_reference and cls not in STARTS:
        assert loss.item() == pytest.approx(LN2, abs=1e-5)  # of any images
    method.zero_grad()
    loss.backward()
    parts = [m for m in method.policy.pipe.components.values() if isinstance(m, torch.nn.Module)]
    everything = [p for m in (method, *parts) for p in m.parameters()]
    assert all((p.grad is not None) == p.requires_grad for p in everything)
    got = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    assert all(g.isfinite().all() for g in got.values())
    assert all(g.abs().sum() > 0 for n, g in got.items() if "lora_B" in n)


@pytest.mark.parametrize("cls", [c for c in PAIRS if c not in REWARD_DECIDES | OWN_LOSERS], **by_name)
def test_exchanging_winner_and_loser_turns_the_gradient(cls):
    """By exactly the direction that lowers the winner's error and raises the loser's."""
    method = build(cls)
    data = latents(method)
    e = seeded(method.errors, data)
    down = gradient(method, e.win - e.lose) * (-1 if cls in BACKWARDS else 1)
    turned = data | {"win_latents": data["lose_latents"], "lose_latents": data["win_latents"]}
    one, other = (gradient(method, seeded(method.batch_loss, d)) for d in (data, turned))
    assert F.cosine_similarity(one - other, down, dim=0) > 0.9


@pytest.mark.parametrize("cls", LISTS, **by_name)
def test_exchanging_the_scores_turns_the_gradient(cls):
    method = build(cls)
    data = lists(method, [[1.0, 0.0]])
    r = seeded(method.ranked, data)
    down = gradient(method, r.error[:, 0] - r.error[:, 1])
    one, other = (gradient(method, seeded(method.batch_loss, data | {"scores": s})) for s in (data["scores"], data["scores"].flip(1)))
    assert F.cosine_similarity(one - other, down, dim=0) > 0.9


@pytest.mark.parametrize("cls", PAIRS, **by_name)
def test_the_order_of_a_batch_of_pairs_does_not_matter(cls):
    method = build(cls, scale=0.05)
    with torch.no_grad():
        e = seeded(method.errors, latents(method, 3))
        order = [2, 0, 1]
        both = [*order, *(i + 3 for i in order)]
        rows = {"t": order, "win": order, "lose": order, "ref_win": order, "ref_lose": order, "batch": order}
        rows |= {"prediction": both, "target": both, "reference": both}
        turned = e._replace(**{k: select_rows(getattr(e, k), r) for k, r in rows.items()})
        torch.testing.assert_close(method.loss(turned), method.loss(e)[order])


@pytest.mark.parametrize("cls", LISTS, **by_name)
def test_the_order_of_lists_and_of_their_images_does_not_matter(cls):
    method = build(cls, scale=0.05)
    with torch.no_grad():
        r = seeded(method.ranked, lists(method, [[1.0, 3.0, 2.0], [0.0, 2.0, 5.0]]))
        loss = method.loss(r)
        turned = r._replace(**{k: getattr(r, k).flip(0) for k in ("error", "ref_error", "scores", "t")})
        torch.testing.assert_close(method.loss(turned), loss.flip(0))
        turned = r._replace(**{k: getattr(r, k)[:, [2, 0, 1]] for k in ("error", "ref_error", "scores")})
        torch.testing.assert_close(method.loss(turned), loss)
    assert loss.isfinite().all() and len(loss) == 2
