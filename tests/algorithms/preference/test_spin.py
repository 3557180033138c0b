
import pytest
import torch
from online import online_preference
from parts import move
from preferences import at

from lit_align.algorithms.preference.spin import SPINDiffusion


@pytest.mark.parametrize("key", ["win", "image"])
def test_spins_losers_are_the_references_samples(key):
    method = online_preference(SPINDiffusion, learns_from=key)
    move(method, 0.2)
    win = torch.randn(2, *method.policy.latent_shape)
    batch = {"prompt": ["a", "b"], "index": [0, 1], f"{key}_latents": win}
    torch.manual_seed(1)
    pairs = method.collect(batch)
    torch.manual_seed(1)
    with method.policy.reference():
        want = method.rollout(method.policy, ["a", "b"]).x
    torch.testing.assert_close(pairs["lose_latents"], want)
    assert torch.equal(pairs["win_latents"], win)
    torch.manual_seed(1)
    assert not torch.allclose(method.rollout(method.policy, ["a", "b"]).x, want, atol=1e-3)


def test_spins_loss_is_diffusion_dpos(policy):
    assert SPINDiffusion(policy=policy, beta=1.0).loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)
