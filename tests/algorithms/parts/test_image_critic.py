"""TDPO-R's critic and the reset of its neurons."""

import pytest
import torch
import torch.nn.functional as F

from lit_align.algorithms.parts.image_critic import Critic


def stepped(size=12):
    """A critic whose every parameter has moments, its optimizer, and embeddings on which neurons 0 and 3 of the second
    hidden layer are dormant."""
    torch.manual_seed(0)
    critic, e = Critic(size), torch.randn(32, size)
    for p in critic.parameters():
        p.data = 0.3 * torch.randn_like(p)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
    F.mse_loss(critic(e), torch.randn(32)).backward()
    optimizer.step()
    critic.eval()
    critic.layers[1].bias.data[[0, 3]] = -1e4
    return critic, optimizer, e


def test_scores_are_mean_relus_over_the_layers():
    critic, _, e = stepped()
    x, got = e, critic.scores(e)
    for layer, score in zip(critic.layers[:-1], got, strict=True):
        x = x @ layer.weight.T + layer.bias
        mean = torch.where(x > 0, x, 0.0).sum(0) / 32
        torch.testing.assert_close(score, mean / mean.mean(), rtol=1e-4, atol=1e-5)
    assert not got[1][[0, 3]].any() and got[1][1:3].all()
    torch.testing.assert_close(
        critic(e), (x @ critic.layers[-1].weight.T).squeeze(1) + critic.layers[-1].bias, rtol=1e-4, atol=1e-4
    )


def test_a_reset_touches_active_neurons_and_their_moments_and_nothing_else():
    critic, optimizer, e = stepped()
    before = [p.detach().clone() for p in critic.parameters()]
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in critic.parameters()]
    masks = [score > 0 for score in critic.scores(e)]
    assert any(m.any() and not m.all() for m in masks)
    critic.reset(masks, optimizer.state, torch.Generator().manual_seed(1))
    fresh, ends = [], [torch.zeros(12, dtype=torch.bool), *masks, torch.zeros(1, dtype=torch.bool)]
    for i, layer in enumerate(critic.layers):
        into, out = ends[i + 1], ends[i]
        for j, (p, touched) in enumerate(((layer.weight, into[:, None] | out), (layer.bias, into))):
            old, was = before[2 * i + j], moments[2 * i + j]
            assert torch.equal(p != old, touched)
            for name in ("exp_avg", "exp_avg_sq"):
                now = optimizer.state[p][name]
                assert not now[touched].any() and torch.equal(now[~touched], was[name][~touched]) and was[name].any()
            assert optimizer.state[p]["step"] == was["step"]
        assert not layer.bias[into].any()
        fresh.append(layer.weight[into[:, None] | out])
    fresh = torch.cat(fresh) * 13  # drawn with standard deviation 1 / 13
    assert abs(fresh.mean()) < 0.02 and fresh.std().item() == pytest.approx(1, rel=0.02)


def test_the_critic_starts_small_and_its_dropout_is_in_training_alone():
    critic, e = Critic(24), torch.randn(4, 24)
    for layer in critic.layers[:2]:
        assert layer.weight.std().item() == pytest.approx(1 / 25, rel=0.03) and not layer.bias.any()
    for p in critic.parameters():
        p.data = 0.1 * torch.randn_like(p)
    assert not torch.equal(critic(e), critic(e))
    critic.eval()
    assert torch.equal(critic(e), critic(e))
