import numpy as np
import pytest
import torch
from hooked import SEEDS, at, draw, noise, started, still

from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.initno import InitNO, above_otsu, foreground

PROMPTS = ["a dog and a cat", "a dog"]


def hook(**kwargs):
    return InitNO(["cat", "dog"], **({"cell": 2} | kwargs))


def test_otsus_threshold_parts_two_groups():
    values = np.concatenate([np.full(30, 0.1), np.full(10, 0.8)])
    assert above_otsu(values).tolist() == [False] * 30 + [True] * 10
    rng = np.random.default_rng(0)
    values = np.clip(np.concatenate([rng.normal(0.3, 0.05, 400), rng.normal(0.7, 0.05, 200)]), 0, 1)
    level = np.floor(values * 255)
    cuts = [c for c in range(255) if 0 < (level <= c).mean() < 1]
    variance = [(level <= c).mean() * (level > c).mean() * (level[level <= c].mean() - level[level > c].mean()) ** 2 for c in cuts]
    assert ((level > cuts[int(np.argmax(variance))]) == above_otsu(values)).all()


def test_the_foreground_is_the_patch_of_the_maximum():
    maps = torch.zeros(5, 5)
    maps[0, 0], maps[0, 1], maps[4, 4] = 1.0, 0.9, 0.8
    want = torch.zeros(5, 5, dtype=torch.bool)
    want[0, :2] = True
    assert torch.equal(foreground(maps), want)


def test_the_terms_of_planted_maps():
    """Two objects whose maxima attend to the same two cells: full overlap; apart: none. What lies outside a map's main
    patch is unclean."""
    mine = hook(padding=False)
    policy = still()
    state, _ = started(policy, mine, noise(policy), at(policy)[1], PROMPTS)
    phrases = state.extras[mine]["phrases"][0]
    words = torch.full((4, 4, 77), 1e-3)
    words[0, 0, phrases[0].object], words[3, 3, phrases[1].object] = 0.9, 0.8
    patches = torch.zeros(4, 4, 4, 4)
    patches[0, 0, 1, 1] = patches[3, 3, 1, 1] = 1.0
    cross, apart, clean, shown = mine.terms(policy, state, (words, patches), 0)
    torch.testing.assert_close(apart, torch.tensor(0.5), atol=1e-4, rtol=0)  # min over the sum of two equal maps
    assert shown.shape == (2, 4, 4) and cross == pytest.approx(1 - shown.amax((1, 2)).min().item(), abs=1e-6) and clean == 0
    far = torch.zeros(4, 4, 4, 4)
    far[0, 0, 0, 0] = far[3, 3, 3, 3] = 1.0
    assert mine.terms(policy, state, (words, far), 0)[1] == 0
    words[0, 1, phrases[0].object], words[3, 0, phrases[0].object] = 0.015, 0.9
    assert mine.terms(policy, state, (words, far), 0)[2] > 0.05


@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["unet", "mm-dit"])
def test_the_losses_gradient_is_that_of_finite_differences(family):
    policy, mine, h = still(family), hook(padding=False), 1e-2
    x, t, _ = at(policy)
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def value(x):
        state, _ = started(policy, mine, x, t, PROMPTS)
        return mine.gradient(policy, state, torch.arange(2), mine.of_step)

    slope = (value(x + h * u)[0] - value(x - h * u)[0]) / (2 * h)
    torch.testing.assert_close((value(x)[-1] * u).flatten(1).sum(1), slope, rtol=0.1, atol=2e-3)


def test_the_noise_is_chosen_by_its_losses_and_stays_near_normal():
    policy = still()
    x, t, _ = at(policy)
    mine = hook(lr=0.05, rounds=2, updates=4, final_updates=12, padding=False)
    state, _ = started(policy, mine, x.clone(), t, PROMPTS)
    state.generators = [torch.Generator().manual_seed(s) for s in (8, 9)]
    total = lambda x: sum(mine.gradient(policy, started(policy, mine, x, t, PROMPTS)[0], torch.arange(2), mine.of_noise)[:1]).sum()
    before = mine.descend(policy, state.part(torch.tensor([0])), x[:1], 1)[1]
    better = torch.cat([mine.optimised(policy, state.part(torch.tensor([p]))) for p in range(2)])
    assert before < 2.5 and better.shape == x.shape
    assert (better.flatten(1).square().mean(1).sqrt() - 1).abs().max() < 0.35
    one = mine.descend(policy, state.part(torch.tensor([0])), x[:1], 15)[0]
    assert total(torch.cat([one, x[1:]])) < total(x)


def test_where_all_is_as_wanted_nothing_changes_to_the_last_bit():
    free = hook(cross=1.1, apart=1.1, step_size=0.0)
    assert torch.equal(draw(still(), free, prompts=PROMPTS), draw(still(), prompts=PROMPTS))
    assert torch.equal(draw(still(), hook(rounds=0, step_size=0.0), prompts=PROMPTS), draw(still(), prompts=PROMPTS))


def test_a_sample_depends_on_its_seed_and_prompt_alone():
    mine = hook(rounds=2, updates=2, final_updates=2, refinements=2)
    together = draw(still(), mine, prompts=PROMPTS, steps=5)
    for k in range(2):
        alone = draw(still(), mine, prompts=PROMPTS[k : k + 1], seeds=SEEDS[k : k + 1], steps=5)
        torch.testing.assert_close(alone[0], together[k], atol=2e-3, rtol=1e-2)
    assert (together - draw(still(), prompts=PROMPTS, steps=5)).abs().max() > 1e-2
