"""SelfDPO's pairs."""

import pytest
import torch
from parts import move, prompts, tiny, trained, trainer
from preferences import attached, batch, still

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.preference import Preference
from lit_align.algorithms.preference.self_dpo import SelfDPO
from lit_align.policies.stable_diffusion import StableDiffusion


def make(cls=SelfDPO, **kwargs):
    return attached(cls(policy=still(scale=0.05), **kwargs))


@pytest.mark.parametrize("key", ["image", "win"])
def test_every_image_wins_against_another_one_of_the_batch(monkeypatch, key):
    method, seen = make(learns_from=key), []
    z = torch.randn(3, *method.policy.latent_shape)
    data = {"prompt": ["a", "b", "c"], f"{key}_latents": z}
    monkeypatch.setattr(Preference, "batch_loss", lambda self, b: seen.append(b))
    torch.manual_seed(0)
    for _ in range(20):
        method.batch_loss(data)
    which = lambda x: [int((z - row).flatten(1).abs().sum(1).argmin()) for row in x]
    assert all(which(b["win_latents"]) == [0, 1, 2] for b in seen)
    assert {tuple(which(b["lose_latents"])) for b in seen} == {(1, 2, 0), (2, 0, 1)}


def test_the_loss_is_diffusion_dpo_of_these_pairs():
    method, dpo = make(beta=300.0), make(DiffusionDPO, beta=300.0)
    z = torch.randn(2, *method.policy.latent_shape)
    data = {"prompt": ["a", "b"], "index": [0, 1], "image_latents": z}
    torch.manual_seed(3)
    loss = method.batch_loss(data)
    torch.manual_seed(3)
    torch.randint(1, 2, ())
    want = dpo.batch_loss(data | {"win_latents": z, "lose_latents": z.flip(0)})
    torch.testing.assert_close(loss, want)


def test_a_step_raises_the_likelihood_of_an_image_under_its_own_caption(tmp_path):
    policy = tiny(StableDiffusion)
    move(policy, 0.02)
    data = batch(policy, 4)
    method = SelfDPO(policy=policy, beta=500.0, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
    before = [p.detach().clone() for p in method.parameters()]
    trainer(tmp_path).fit(method, prompts(4, 1, image=data["image"]))
    moved = [not torch.equal(a, b) for a, b in zip(before, method.parameters())]
    assert any(moved) and all(p.requires_grad for p, m in zip(method.parameters(), moved) if m) and len(trained(policy))


def test_one_image_is_no_pair():
    with pytest.raises(ValueError, match="set --data.batch_size to 2 or more"):
        make().batch_loss(batch(still(scale=0.05), 1))
