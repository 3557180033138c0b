"""Training of noise hypernetworks."""

import pytest
import torch
from parts import FAMILIES, Darkness, alone, prompts, tiny, trainer

from lit_align.algorithms.noise.noise_hypernetwork import NoiseHypernetwork
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Frozen
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.steering.hyper_noise import HyperNoise


def method(family=StableDiffusion, scale=1.0, **kwargs):
    how = {"rollout": Sampler(2, 1.0), "rank": 2}
    return NoiseHypernetwork(reward=Darkness(scale), policy=tiny(family, Frozen()), **how | kwargs)


def moved(m, scale=0.1):
    g = torch.Generator().manual_seed(0)
    for p in m.network.parameters():
        if p.requires_grad:
            p.data = scale * torch.randn(p.shape, generator=g)
    return m


@FAMILIES
def test_the_loss_is_reward_and_squared_shift(family):
    m = moved(alone(method(family, regularisation=0.3)))
    torch.manual_seed(5)
    loss = m.batch_loss({"prompt": ["a", "b"], "columns": {}})
    torch.manual_seed(5)
    policy, x = m.policy, torch.randn(2, *m.policy.latent_shape)
    f = m.network(policy, x, m.rollout.timesteps(policy)[:1].expand(2), policy.condition(["a", "b"]))
    image = policy.decode(Sampler(2, 1.0)(policy, ["a", "b"], x=x + f).x)
    expected = 0.3 * f.square().mean((1, 2, 3)) - Darkness()(image, ["a", "b"])
    torch.testing.assert_close(loss, expected.mean(), atol=1e-4, rtol=1e-4)


def test_the_gradient_passes_through_all_steps():
    """Against finite differences in one number of the last layer's B, of a smooth reward."""
    m = moved(alone(method(scale=100.0, regularisation=0.0)))
    b = m.network.net.conv_out.lora_B["noise"].weight

    def loss():
        torch.manual_seed(5)
        return m.batch_loss({"prompt": ["a", "b"], "columns": {}})

    (gradient,) = torch.autograd.grad(loss(), b)
    at, h = (0, int(gradient[0].flatten().abs().argmax()), 0, 0), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            b[at] += sign * h
            values.append(loss().item())
            b[at] -= sign * h
    assert gradient[at].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=0.05)


def test_training_moves_the_lora_alone_and_leaves_it_on_disk(tmp_path):
    m = method(scale=100.0, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), regularisation=0.01)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    t = trainer(tmp_path, max_epochs=1)
    t.fit(m, prompts(4, 8, columns={}))
    changed = {n for n, p in m.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".lora_" in n and n.startswith("network.") for n in changed)
    assert all(n.startswith("network.") and ".lora_" in n for n in m.state_dict())
    file, texts = str(tmp_path / "noise/hyper_noise.safetensors"), ["p0", "p1", "p2", "p3"]
    draw = lambda *hooks: Sampler(2, 1.0, steering=list(hooks))(m.policy, texts, seeds=[7, 8, 9, 10]).x
    with torch.no_grad():
        plain, better = (Darkness()(m.policy.decode(x), texts).mean() for x in (draw(), draw(HyperNoise(file))))
    assert better > plain  # at use, on noise it has not seen
