import numpy as np
import pytest
import torch
from hooked import SEEDS, at, by_diffusers, draw, started, still
from parts import move, tiny
from scipy.ndimage import convolve

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.attend_excite import AttendExcite
from lit_align.steering.attention_loss import smoothed
from lit_align.steering.pag import PAG

PROMPTS = ["a red circle and a dog", "a dog"]
DOG, CIRCLE = [15, 16, 17], [5, 6, 7, 8, 9, 10]  # positions of these words' letters in the first prompt


def hook(**kwargs):
    return AttendExcite(["circle", "dog"], ["red"], **({"cell": 2} | kwargs))


def test_the_whole_run_is_that_of_diffusers():
    """Its pipeline excites tokens; here each word is one letter."""
    from diffusers import StableDiffusionAttendAndExcitePipeline as Pipeline

    policy, prompts = still(), ["a b c", "d e"]
    want = by_diffusers(Pipeline, policy, prompts, steps=6, token_indices=[[2, 3], [1]], max_iter_to_alter=3, thresholds={0: 1.5, 2: 1.2}, attn_res=(4, 4))
    mine = AttendExcite(["b", "c", "d"], cell=2, thresholds={0.0: 1.5, 1 / 3: 1.2})
    got = draw(policy, mine, steps=6, prompts=prompts)
    assert (want - draw(policy, steps=6, prompts=prompts)).abs().max() > 0.1
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-2)


def test_smoothing_is_a_gaussian_with_mirrored_edges():
    maps = torch.rand(2, 5, 6)
    line = np.exp(-np.array([-1.0, 0, 1]) ** 2 / (2 * 0.5))
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    for got, one in zip(smoothed(maps), maps):
        np.testing.assert_allclose(got, convolve(one.numpy(), kernel, mode="mirror"), rtol=1e-5)


@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["unet", "mm-dit"])
def test_the_loss_is_that_of_the_worst_object(family):
    policy, mine = still(family), hook(padding=False)
    x, t, _ = at(policy)
    state, _ = started(policy, mine, x, t, PROMPTS)
    loss, score, gradient = mine.gradient(policy, state, torch.arange(2))
    layers = []
    with policy.attention(record=lambda call: layers.append(call.probabilities()[:, :, call.image, call.text]) if call.kind != "self" else None), torch.no_grad():
        policy.denoise(x, t, policy.condition(PROMPTS))
    maps = torch.stack([(p / p.sum(-1, keepdim=True)).mean(1) for p in layers]).mean(0).view(2, 4, 4, -1).double().numpy()
    letters = [k for k, (a, b) in enumerate(policy.spans(PROMPTS[0])) if b > a]
    e = np.exp(100 * maps[0][..., letters])
    e /= e.sum(-1, keepdims=True)
    line = np.exp(-np.array([-1.0, 0, 1]) ** 2)
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    of = lambda word: e[..., [letters.index(k) for k in word]].mean(-1)
    peaks = [convolve(of(word), kernel, mode="mirror").max() for word in (CIRCLE, DOG)]
    assert score[0].item() == pytest.approx(min(peaks), rel=1e-3) and loss[0].item() == pytest.approx(1 - min(peaks), rel=1e-3)
    h, u = 1e-2, torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def at_x(x):
        moved, _ = started(policy, mine, x, t, PROMPTS)
        return mine.gradient(policy, moved, torch.arange(2))[0].double()

    slope = (at_x(x + h * u) - at_x(x - h * u)) / (2 * h)
    torch.testing.assert_close((gradient * u).flatten(1).sum(1).double(), slope, rtol=0.1, atol=2e-3)
    assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("size,better", [(0.2, True), (-0.2, False)])
def test_a_small_step_raises_the_worst_peak_and_the_other_sign_lowers_it(size, better):
    policy, mine = still(), hook(step_size=size, thresholds={})
    x, t, _ = at(policy)
    state, sampler = started(policy, mine, x.clone(), t, PROMPTS)
    before = mine.gradient(policy, state, torch.arange(2))[1]
    mine.before_step(policy, state, sampler)
    after = mine.gradient(policy, state, torch.arange(2))[1]
    assert ((after > before) == better).all()


def test_it_refines_until_the_threshold_is_reached_each_sample_by_itself():
    policy, prompts = still(), ["a dog", "b dog"]
    x, t, _ = at(policy)
    make = lambda goal: AttendExcite(["dog"], cell=2, step_size=300.0, thresholds={0.0: goal}, refinements=30, padding=False)
    state, _ = started(policy, make(0.0), x, t, prompts)
    refined, forwards = make(0.262), []
    for rows in ([0, 1], [0], [1]):
        state, sampler = started(policy, refined, x[rows].clone(), t[rows], [prompts[k] for k in rows])
        assert refined.gradient(policy, state, torch.arange(len(rows)))[1].max() < 0.26
        policy.calls.clear()
        refined.before_step(policy, state, sampler)
        forwards.append(policy.calls["nfe_forward"])
        if len(rows) == 2:
            both = state.x
            assert refined.gradient(policy, state, torch.arange(2))[1].min() > 0.262
        else:
            torch.testing.assert_close(state.x, both[rows], atol=1e-3, rtol=1e-3)
    assert forwards[0] == forwards[1] + forwards[2] < 2 * 31 and min(forwards) > 1  # a sample that is there stops


def test_evaluations():
    policy = still()
    policy.calls.clear()
    state = Sampler(4, 3.0, steering=[hook(thresholds={0.0: 2.0}, refinements=3)])(policy, PROMPTS, seeds=SEEDS)
    assert state.calls["nfe_forward"] == 2 * 4 + 2 + 3 and state.calls["nfe_backward"] == 2 + 3


def test_step_size_0_changes_nothing_to_the_last_bit():
    assert torch.equal(draw(still(), hook(step_size=0.0), prompts=PROMPTS), draw(still(), prompts=PROMPTS))


def test_a_sample_depends_on_its_seed_and_prompt_alone():
    policy = still()
    together = draw(policy, hook(), prompts=PROMPTS)
    torch.testing.assert_close(draw(policy, hook(), prompts=PROMPTS[::-1], seeds=SEEDS[::-1]).flip(0), together, atol=1e-3, rtol=1e-3)
    chunked = Sampler(4, 3.0, DDIM(0.0), [hook()], minibatch=1)(policy, PROMPTS, seeds=SEEDS).x
    torch.testing.assert_close(chunked, together, atol=1e-3, rtol=1e-3)


def test_it_works_beside_pag_and_on_a_trained_policy():
    policy = tiny()
    move(policy)
    both = draw(policy, PAG(2.0), hook(), prompts=PROMPTS)
    assert (both - draw(policy, PAG(2.0), prompts=PROMPTS)).abs().max() > 1e-3
    assert (both - draw(policy, hook(), prompts=PROMPTS)).abs().max() > 1e-3
    assert all(p.grad is None for p in policy.parameters())


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="cell is 4; this denoiser's maps have 2: set one"):
        draw(still(), hook(cell=4), prompts=PROMPTS)
    with torch.inference_mode(), pytest.raises(ValueError, match="set --trainer.inference_mode false"):
        hook().check(still(), Sampler(2, 3.0))
