"""NPNet's data and training."""

import pytest
import torch
from parts import Darkness, alone, prompts, tiny, trainer

from lit_align.algorithms.noise.noise_prompt_learning import NoisePromptLearning
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Frozen
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.golden_noise import GoldenNoise

SMALL = {"width": 8, "depths": [1, 1, 1, 1], "heads": [1, 1, 1, 1]}


def method(reward=None, family=None, **kwargs):
    policy = tiny(family, Frozen()) if family else tiny(adapter=Frozen())
    how = {"rollout": Sampler(4, 3.0), "minibatch": 3} | SMALL
    return NoisePromptLearning(reward=reward, policy=policy, **how | kwargs)


def test_redenoising_by_hand_on_a_vp_process():
    """A guided DDIM step from T to T-1 and the inverse of the conditional one, in the formulas of the paper."""
    m = method()
    policy = m.policy
    z, cond = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)), policy.condition(["a", "b"])
    t, s = (m.rollout.timesteps(policy)[k].expand(2) for k in (0, 1))
    (a_t, s_t), (a_s, s_s) = (policy.process.coefficients(u, z) for u in (t, s))
    eps = policy.denoise(z, t, cond, 3.0)
    x_s = a_s * (z - s_t * eps) / a_t + s_s * eps
    back = policy.denoise(x_s, t, cond)
    expected = a_t * (x_s - s_s * back) / a_s + s_t * back
    torch.testing.assert_close(m.redenoise(z, cond), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [None, StableDiffusion3])
def test_a_prediction_that_does_not_depend_on_anything_gives_the_noise_back(family):
    m = method(family=family)
    m.policy.denoise = lambda x, t, cond, w=1.0: torch.full_like(x, 0.3)
    z = torch.randn(2, *m.policy.latent_shape)
    torch.testing.assert_close(m.redenoise(z, {}), z, atol=1e-4, rtol=1e-4)


def test_pairs_whose_sample_became_better_are_kept():
    m = alone(method(Darkness(100.0)))
    torch.manual_seed(0)
    texts = [f"p{i}" for i in range(8)]
    kept = m.collect({"prompt": texts, "columns": {}, "index": list(range(8))})
    rows = {"prompt": kept["prompt"], "columns": {}}
    before, after = (m.rewards_from(kept[k], rows) for k in ("z", "golden"))
    assert 0 < len(kept["prompt"]) < 8 and (after - before > -1e-4).all()
    every = alone(method()).collect({"prompt": texts, "columns": {}, "index": list(range(8))})
    assert every["prompt"] == texts
    torch.testing.assert_close(m.batch_loss(kept), (m.net(kept["z"], kept["text"]) - kept["golden"]).square().mean())
    with pytest.raises(ValueError, match="inverts a step, and the rollout's have noise"):
        method(rollout=Sampler(4, 3.0, DDIM(1.0)))


def test_training_moves_the_network_alone_and_leaves_it_on_disk(tmp_path):
    m = method(Darkness(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), updates=2)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    t = trainer(tmp_path)
    t.fit(m, prompts(6, 2, columns={}))
    moved = {n for n, p in m.named_parameters() if not torch.equal(p, before[n])}
    assert {"net.alpha", "net.beta", "net.text.linear.weight"} <= moved and all(n.startswith("net.") for n in moved)
    assert all(n.startswith("net.") for n in m.state_dict())
    file = str(tmp_path / "noise/npnet.safetensors")
    state = Sampler(4, 3.0, steering=[GoldenNoise(file)])(m.policy, ["a"], seeds=[0])
    z = torch.randn(m.policy.latent_shape, generator=torch.Generator().manual_seed(0))[None]
    with torch.no_grad():
        golden = m.net.eval()(z, m.policy.condition(["a"])["text"])
    torch.testing.assert_close(state.x, Sampler(4, 3.0)(m.policy, ["a"], x=golden).x, atol=1e-4, rtol=1e-4)


def test_it_learns_the_golden_noise():
    m, g = method(), torch.Generator().manual_seed(0)
    z, text = torch.randn(4, *m.policy.latent_shape, generator=g), torch.randn(4, 77, 16, generator=g)
    pairs = {"z": z, "golden": 0.7 * z, "text": text}
    optimizer, first = torch.optim.AdamW(m.net.parameters(), lr=1e-2), m.batch_loss(pairs).item()
    for _ in range(8):
        optimizer.zero_grad()
        m.batch_loss(pairs).backward()
        optimizer.step()
    assert m.batch_loss(pairs).item() < 0.8 * first
