"""What a policy was: its reference, old policies, and both sharded."""

import pytest
import torch
from parts import ADAPTERS, T, move, tiny, trained

from lit_align.policies.adapters import Frozen, Full
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def predict(policy, guidance_scale=1.0):
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(7))
    t = policy.process.timesteps(10)[T([2, 8])]
    with torch.no_grad():
        return policy.denoise(x, t, policy.condition(["a", "b"]), guidance_scale)


@ADAPTERS
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
def test_the_old_policy_is_the_moving_average_of_the_parameters(family, adapter):
    policy, other = tiny(family, adapter), tiny(family, adapter)
    policy.add_reference()
    policy.add_old()
    base, start = predict(policy), [p.detach().clone() for p in trained(policy)]
    move(policy, 0.3, 1)
    now = predict(policy)
    policy.update_old(0.75)
    for p, a, b in zip(trained(other), start, trained(policy), strict=True):
        p.data = 0.75 * a + 0.25 * b.detach()
    with policy.old():
        torch.testing.assert_close(predict(policy), predict(other), atol=1e-5, rtol=1e-4)
        assert not policy.in_reference
    with policy.reference():
        torch.testing.assert_close(predict(policy), base)
    torch.testing.assert_close(predict(policy), now)
    assert not torch.allclose(now, predict(other), atol=1e-4) and not torch.allclose(base, predict(other), atol=1e-4)
    policy.update_old()
    with policy.old():
        torch.testing.assert_close(predict(policy), now)


@ADAPTERS
@pytest.mark.parametrize("moving", [False, True])
def test_policies_of_other_days_do_not_get_mixed_up(adapter, moving):
    policy = tiny(StableDiffusion3, adapter)
    seen = {"reference": predict(policy)}
    policy.add_reference(moving)
    for seed, name in enumerate(("old", "older")):
        move(policy, 0.3, seed)
        policy.add_old(name)
        seen[name] = predict(policy)
    move(policy, 0.3, 5)
    policy.add_old()  # changes nothing
    now = predict(policy)
    inside = {"reference": policy.reference, "old": policy.old, "older": lambda: policy.old("older")}
    for name, enter in inside.items():
        for within, again in inside.items():
            with enter():
                torch.testing.assert_close(predict(policy), seen[name])
                with again():
                    torch.testing.assert_close(predict(policy), seen[within])
                torch.testing.assert_close(predict(policy), seen[name])
        with pytest.raises(KeyError), enter():
            raise KeyError
        torch.testing.assert_close(predict(policy), now)
    names = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert names and not any(f".{key}." in name for key in seen for name in names)
    kept = policy.state_names() - names
    assert all(any(f".{key}." in n for n in kept) == (moving or key != "reference") for key in seen)


def test_who_has_no_old_policy_is_told():
    policy = tiny()
    with pytest.raises(RuntimeError, match="add_old"):
        policy.old()
    with pytest.raises(ValueError, match="choose adapter"):
        StableDiffusion("tiny", Frozen()).add_old()
    with pytest.raises(ValueError, match="text_encoder: false"):
        StableDiffusion("tiny", Full(text_encoder=True)).add_old()


@ADAPTERS
def test_old_policies_are_sharded_with_the_policy(adapter, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    policy, whole = (tiny(StableDiffusion3, adapter) for _ in range(2))
    for p in (policy, whole):
        p.add_reference()
        p.add_old()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        policy.shard(init_device_mesh("cpu", (1,)))
        for p in (policy, whole):
            for q in trained(p):
                q.data += 0.1
            p.update_old(0.25)
        torch.testing.assert_close(predict(policy), predict(whole))
        with policy.old(), whole.old():
            torch.testing.assert_close(predict(policy), predict(whole))
        with policy.reference(), whole.reference():
            torch.testing.assert_close(predict(policy), predict(whole))
    finally:
        torch.distributed.destroy_process_group()


@ADAPTERS
def test_a_moving_reference_is_where_the_policy_was_when_it_was_refreshed(adapter):
    policy = tiny(StableDiffusion, adapter)
    policy.add_reference(moving=True)
    x, t, cond = torch.randn(2, *policy.latent_shape), T([10, 700]), policy.condition(["a", "b"])

    def now():
        with torch.no_grad():
            return policy.denoise(x, t, cond)

    def then():
        with policy.reference():
            return now()

    base = now()
    torch.testing.assert_close(then(), base)
    move(policy)
    first = now()
    torch.testing.assert_close(then(), base)
    policy.update_reference()
    torch.testing.assert_close(then(), first)
    move(policy, seed=1)
    torch.testing.assert_close(then(), first)
    assert not torch.allclose(now(), first)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained and not any("reference" in n or "_frozen" in n for n in trained)
