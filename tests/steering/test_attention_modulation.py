import math

import pytest
import torch
from hooked import at, draw, started, still

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.attention_modulation import AttentionModulation

PROMPTS = ["a red dog and a blue cat", "a dog"]
OFF = {"tau": 1.0, "mask_until": 0.0, "emphasis": 1.0}


def hook(**kwargs):
    return AttentionModulation(["dog", "cat"], ["red", "blue"], **kwargs)


def outputs(policy, mine, i):
    """Of each attention layer: the evaluation for the first prompt, and what the hook makes of it at step i of 10."""
    x, t, _ = at(policy)
    state, _ = started(policy, mine, x[:1], t[:1], PROMPTS[:1], steps=10, i=i)
    with policy.attention(record=lambda call: (call, mine.edit(state, call))) as seen, torch.no_grad():
        policy.denoise(x[:1], t[:1], policy.condition(PROMPTS[:1]))
    return seen


@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["unet", "mm-dit"])
def test_nothing_asked_for_changes_nothing_to_the_last_bit(family):
    assert torch.equal(draw(still(family), hook(**OFF), prompts=PROMPTS), draw(still(family), prompts=PROMPTS))
    assert (draw(still(family), hook(), prompts=PROMPTS) - draw(still(family), prompts=PROMPTS)).abs().max() > 1e-3


@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["unet", "mm-dit"])
def test_early_self_attention_is_sharpened(family):
    policy, mine = still(family), hook(**OFF | {"tau": 0.5})
    for call, out in outputs(policy, mine, 1):
        if call.kind == "cross":
            assert out is None
            continue
        logits = call.query @ call.key.transpose(-1, -2) / math.sqrt(call.query.shape[-1])
        n = call.grid[0] * call.grid[1]
        logits[:, :, :n, :n] *= 2.0  # SD3's order: image, text
        torch.testing.assert_close(out, logits.softmax(-1) @ call.value, atol=1e-4, rtol=1e-4)
    assert all(out is None for _, out in outputs(policy, mine, 2))


def test_a_patch_attends_to_the_object_it_attends_to_most():
    """By loops over patches: of `red dog` and `blue cat` one keeps its tokens; other tokens keep theirs."""
    mine, groups = hook(**OFF | {"mask_until": 0.5}), [list(range(2, 8)), list(range(12, 19))]
    seen = [(call, out) for call, out in outputs(still(), mine, 0) if call.kind == "cross"]
    chosen = set()
    for call, out in seen:
        p = (call.query @ call.key.transpose(-1, -2) / math.sqrt(call.query.shape[-1])).softmax(-1)  # (1, H, Q, 77)
        for q in range(p.shape[2]):
            mass = [p[0, :, q, group].sum(-1).mean().item() for group in groups]
            keep = mass.index(max(mass))
            chosen.add(keep)
            p[0, :, q, groups[1 - keep]] = 0
        p = p / p.sum(-1, keepdim=True)
        torch.testing.assert_close(out, p @ call.value, atol=1e-4, rtol=1e-4)
    assert len(seen) == 4 and chosen == {0, 1}
    assert all(out is None for call, out in outputs(still(), mine, 5))


def test_objects_weigh_more_early_and_attributes_late():
    mine = hook(**OFF | {"emphasis": 3.0, "phase": 0.4})
    for i, strong in ((0, [5, 6, 7, 16, 17, 18]), (4, [2, 3, 4, 12, 13, 14, 15])):
        for call, out in outputs(still(), mine, i):
            if call.kind == "cross":
                p = (call.query @ call.key.transpose(-1, -2) / math.sqrt(call.query.shape[-1])).softmax(-1)
                p[..., strong] *= 3
                torch.testing.assert_close(out, p / p.sum(-1, keepdim=True) @ call.value, atol=1e-4, rtol=1e-4)


def test_a_sample_depends_on_its_seed_alone():
    together = draw(still(), hook(), prompts=PROMPTS)
    for k in range(2):
        torch.testing.assert_close(draw(still(), hook(), prompts=PROMPTS[k : k + 1], seeds=[3 + k])[0], together[k], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(Sampler(4, 3.0, steering=[hook()], minibatch=1)(still(), PROMPTS, seeds=[3, 4]).x, together, atol=1e-4, rtol=1e-3)
