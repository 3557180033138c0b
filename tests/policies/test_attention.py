"""The door to a denoiser's attention, against the layers' own projections."""

import math

import pytest
import torch
from hooked import at, still
from parts import tiny

from lit_align.policies.adapters import Frozen
from lit_align.policies.attention import cells, refuse
from lit_align.policies.flux import Flux
from lit_align.policies.flux2 import Flux2
from lit_align.policies.qwen_image import QwenImage
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.policies.wan import Wan
from lit_align.policies.z_image import ZImage

SIZES = {Flux: {"resolution": (16, 24)}, Flux2: {"resolution": (16, 24)}, QwenImage: {"resolution": (32, 48)}}
JOINT = (StableDiffusion3, Flux, Flux2, QwenImage)
BUILT = {}


def make(family):
    if family not in SIZES:
        return still(family)
    if family not in BUILT:
        BUILT[family] = family("tiny", Frozen(), max_sequence_length={Flux: 32, Flux2: 1024, QwenImage: 512}[family], **SIZES[family])
    return BUILT[family]


@pytest.fixture(params=[StableDiffusion, StableDiffusionXL, *JOINT], ids=lambda c: c.__name__)
def policy(request):
    return make(request.param)


def run(policy, prompts=("a red circle", "a blue square"), x=None):
    x_t, t, _ = at(policy)
    return policy.denoise(x_t if x is None else x, t, policy.condition(list(prompts)))


def heads(x, layer):
    return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)


def test_recorded_probabilities_are_the_softmax_of_the_layers_projections(policy):
    """Of the projections' own outputs, for families without rotary embeddings."""
    if not isinstance(policy, StableDiffusion | StableDiffusionXL | StableDiffusion3):
        pytest.skip("rotary embeddings lie between the projections and the product")
    seen, handles = {}, []
    for name, module in policy.denoiser.named_modules():
        if name.endswith(("to_q", "to_k", "add_q_proj", "add_k_proj")):
            handles.append(module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out})))
    with policy.attention(record=lambda call: call) as calls, torch.no_grad():
        run(policy)
    for handle in handles:
        handle.remove()
    assert len(calls) == len(policy.denoiser.attn_processors)
    for call in calls:
        project = lambda which, call=call: seen[f"{call.name}.{which}"]
        q, k = project("to_q"), project("to_k")
        if call.kind == "joint":  # SD3's order: image, text
            q, k = torch.cat([q, project("add_q_proj")], 1), torch.cat([k, project("add_k_proj")], 1)
        q, k = heads(q, call.layer), heads(k, call.layer)
        want = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        torch.testing.assert_close(call.probabilities(), want, atol=1e-5, rtol=1e-4)


def test_its_output_is_the_layers_own(policy):
    with torch.no_grad():
        plain = run(policy)
        with policy.attention(replace=lambda call: call.output(call.probabilities())):
            torch.testing.assert_close(run(policy), plain, atol=1e-4, rtol=1e-4)
        with policy.attention(record=lambda call: None, replace=lambda call: None) as kept:
            assert torch.equal(run(policy), plain) and kept == []


def test_what_is_text_and_what_is_image(policy):
    """In the first layer, another prompt changes the text tokens' keys alone, and other latents the image tokens'."""
    def first(**kwargs):
        with policy.attention(record=lambda call: call) as calls, torch.no_grad():
            run(policy, **kwargs)
        return next(call for call in calls if call.kind != "self")

    x = at(policy, seed=7)[0]
    call, worded, moved = first(), first(prompts=("a red square", "a blue circle")), first(x=x)
    h, w = call.grid
    assert call.query[:, :, call.image].shape[2] == h * w and call.cell * h == policy.latent_shape[1]
    text = lambda c: c.key[:, :, c.text]
    assert not torch.allclose(text(call), text(worded), atol=1e-4)
    torch.testing.assert_close(call.words().sum(-1), torch.ones_like(call.words().sum(-1)))
    image = lambda c: c.query[:, :, c.image]
    assert not torch.allclose(image(call), image(moved), atol=1e-4)
    if isinstance(policy, JOINT):
        assert call.kind == "joint" and text(call).shape[2] + h * w == call.key.shape[2]
        torch.testing.assert_close(text(call), text(moved))
    else:
        assert call.kind == "cross" and torch.equal(text(call), text(moved)) and call.text == slice(0, 77)


def test_what_is_recorded_has_its_gradient():
    policy, h = still(), 1e-2
    x, t, _ = at(policy)
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def value(x):
        with policy.attention(record=lambda call: call.words()[..., :3].square().sum() if call.kind == "cross" else None) as maps:
            run(policy, x=x)
        assert len(maps) == 4
        return sum(maps)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    slope = (value(x + h * u) - value(x - h * u)).item() / (2 * h)
    assert (gradient * u).sum().item() == pytest.approx(slope, rel=0.05, abs=1e-4) and abs(slope) > 1e-4


def test_processors_are_the_same_objects_afterwards_also_after_an_error(policy):
    before, plain = dict(policy.denoiser.attn_processors), run(policy).detach()
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.denoiser.modules())
    own = hooks()

    def fail(call):
        raise KeyError("stop")

    with policy.attention(replace=lambda call: call.value if call.kind == "self" else None):
        run(policy)
    for given in ({"record": fail}, {"replace": fail}):
        with pytest.raises(KeyError, match="stop"), policy.attention(**given):
            run(policy)
    after = dict(policy.denoiser.attn_processors)
    assert before.keys() == after.keys() and all(before[k] is after[k] for k in before) and hooks() == own
    assert torch.equal(run(policy), plain)


def test_doors_open_inside_one_another():
    policy = still()
    with policy.attention(record=lambda call: call.name) as outer:
        run(policy)
        with policy.attention(record=lambda call: call.name) as inner:
            run(policy)
        run(policy)
    assert len(inner) == 8 and outer == inner * 3


def test_a_unets_layers_are_named_by_place_and_size():
    policy = still()
    with policy.attention(record=lambda call: (call.kind, call.place, call.cell, call.grid)) as seen:
        run(policy)
    assert seen == [(kind, place, 2, (4, 4)) for place in ("down", "mid", "up", "up") for kind in ("self", "cross")]
    assert cells(policy) == cells(policy, "self") == {2} and cells(still(StableDiffusion3)) == {2}


@pytest.mark.parametrize("side", [(24, 40), (18, 22)])
def test_grids_of_sizes_that_do_not_divide(side):
    policy = StableDiffusion("tiny", Frozen(), resolution=side)
    with policy.attention(record=lambda call: (call.grid, call.query.shape[2])) as seen:
        run(policy)
    assert all(h * w == q for (h, w), q in seen)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="X reads attention, which is not known of ZImage"):
        refuse(ZImage("tiny", Frozen()), "X")
    with pytest.raises(ValueError, match="Wan makes videos|not known of Wan"):
        refuse(Wan("tiny", Frozen(), num_frames=5), "X")
    policy = tiny(adapter=Frozen())
    policy.denoiser.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="set policy.gradient_checkpointing to false"), policy.attention():
        pass
    policy.denoiser.disable_gradient_checkpointing()
    policy.compiles = True
    with pytest.raises(ValueError, match="set policy.compile to false"), policy.attention():
        pass
