import pytest
import torch
from hooked import SEEDS, at, draw, started, still

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.layout_guidance import LayoutGuidance, inside

PROMPTS = ["a dog left of a cat", "a dog above a cat"]


def hook(**kwargs):
    return LayoutGuidance(["dog", "cat"], **({"layers": ["mid_block", "up_blocks.0"]} | kwargs))


def test_the_share_inside_a_box():
    maps = torch.arange(16.0).view(4, 4, 1)
    torch.testing.assert_close(inside(maps, (0.0, 0.0, 0.5, 1.0)), torch.tensor([(0 + 1 + 4 + 5 + 8 + 9 + 12 + 13) / 120.0]))
    torch.testing.assert_close(inside(maps, (0.0, 0.5, 1.0, 1.0)), torch.tensor([(8 + 9 + 10 + 11 + 12 + 13 + 14 + 15) / 120.0]))
    assert inside(maps, (0.0, 0.0, 1.0, 1.0)) == 1 and inside(maps, (0.99, 0.0, 1.0, 1.0)) >= 0


def test_boxes_come_from_the_words_between_two_objects_or_from_the_data():
    policy, mine = still(), hook()
    x, t, _ = at(policy)
    state, _ = started(policy, mine, x, t, PROMPTS)
    assert state.extras[mine]["boxes"] == [[(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)], [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)]]
    given = [[[0, 0, 0.3, 0.3], [0.5, 0.5, 1, 1]]] * 2
    state, _ = started(policy, mine, x, t, PROMPTS, boxes=given)
    assert state.extras[mine]["boxes"][1] == [(0, 0, 0.3, 0.3), (0.5, 0.5, 1, 1)]
    with pytest.raises(ValueError, match="has 2 phrases and 1 boxes"):
        started(policy, mine, x, t, PROMPTS, boxes=[[[0, 0, 1, 1]]] * 2)
    with pytest.warns(UserWarning, match="1 of 2 prompts, such as .a dog., have no boxes"):
        started(policy, mine, x, t, [PROMPTS[0], "a dog"])


@pytest.mark.parametrize("family,layers", [(type(still()), ["mid_block", "up_blocks.0"]), (StableDiffusion3, ["blocks.0", "blocks.1"])], ids=["unet", "mm-dit"])
def test_the_loss_and_its_gradient(family, layers):
    policy, mine, h = still(family), hook(layers=layers), 1e-2
    x, t, _ = at(policy)
    state, _ = started(policy, mine, x, t, PROMPTS)
    kept = []
    with policy.attention(record=lambda call: kept.append(call.words().mean(1)) if call.kind != "self" and any(name in call.name for name in layers) else None), torch.no_grad():
        policy.denoise(x, t, policy.condition(PROMPTS))
    dog, cat = [2, 3, 4], [11, 12, 13]  # a left of: a 1, dog 2-4, left 5-8, of 9-10, a 11, cat 12-14
    spans = policy.spans(PROMPTS[0])
    dog, cat = ([p for p, (s, e) in enumerate(spans) if e > s and PROMPTS[0].find(word) <= s < PROMPTS[0].find(word) + 3] for word in ("dog", "cat"))
    each = []
    for maps in kept:
        m = maps[0].view(4, 4, -1)
        each += [(1 - m[:, :2, tokens].sum((0, 1)) / m[..., tokens].sum((0, 1))).square().mean() for tokens in [dog]]
        each += [(1 - m[:, 2:, tokens].sum((0, 1)) / m[..., tokens].sum((0, 1))).square().mean() for tokens in [cat]]
    loss = mine.losses(policy, state, x)
    torch.testing.assert_close(loss[0], torch.stack(each).mean(), atol=1e-5, rtol=1e-4)
    leaf, u = x.clone().requires_grad_(), torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(mine.losses(policy, state, leaf).sum(), leaf)
    slope = (mine.losses(policy, state, x + h * u) - mine.losses(policy, state, x - h * u)) / (2 * h)
    torch.testing.assert_close((gradient * u).flatten(1).sum(1), slope, atol=2e-4, rtol=0.05)


@pytest.mark.parametrize("weight,better", [(300.0, True), (-300.0, False)])
def test_a_step_lowers_the_loss_and_the_other_sign_raises_it(weight, better):
    policy, mine = still(), hook(weight=weight, refinements=1)
    x, t, _ = at(policy)
    state, sampler = started(policy, mine, x.clone(), t, PROMPTS)
    before = mine.losses(policy, state, x)
    mine.before_step(policy, state, sampler)
    assert ((mine.losses(policy, state, state.x) < before) == better).all()
    want = x - (policy.process.sigma(t)[0] ** 2) * weight * torch.autograd.grad(mine.losses(policy, state, leaf := x.clone().requires_grad_()).sum(), leaf)[0]
    torch.testing.assert_close(state.x, want, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:LayoutGuidance")
def test_what_is_reached_stops_and_what_has_no_box_stays():
    policy = still()
    assert torch.equal(draw(policy, hook(threshold=1.0), prompts=PROMPTS), draw(policy, prompts=PROMPTS))
    assert torch.equal(draw(policy, hook(weight=0.0), prompts=PROMPTS), draw(policy, prompts=PROMPTS))
    mixed = ["a dog left of a cat", "a dog"]
    got = draw(policy, hook(weight=300.0, threshold=0.0, end=1.0), prompts=mixed)
    assert torch.equal(got[1], draw(policy, prompts=mixed)[1]) and (got[0] - draw(policy, prompts=mixed)[0]).abs().max() > 1e-3
    state = Sampler(4, 3.0, steering=[hook(threshold=0.0, end=0.5, refinements=3)])(policy, PROMPTS, seeds=SEEDS)
    assert state.calls["nfe_forward"] == 2 * 4 + 2 * 3 and state.calls["nfe_backward"] == 2 * 3


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="no layer with text is called up_blocks.7; there are down_blocks.1"):
        draw(still(), hook(layers=["up_blocks.7"]), prompts=PROMPTS)
