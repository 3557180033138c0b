"""Training of SVDD-MC's value network."""

import torch
from parts import Darkness, alone, prompts, tiny, trainer

from lit_align.algorithms.reward_modeling.value_regression import ValueRegression
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Frozen
from lit_align.rewards.latent_value import LatentValue
from lit_align.steering.svdd import SVDD

ROLLOUT = Sampler(4, 1.0, DDIM(1.0))


class Bright(Darkness):
    """In an own unit."""

    def forward(self, images, prompts):
        return 50 + 100 * super().forward(images, prompts)


def method(**kwargs):
    policy = tiny(adapter=Frozen())
    torch.manual_seed(0)
    return ValueRegression(policy=policy, reward=Bright(), value=LatentValue(16), rollout=ROLLOUT, minibatch=3, **kwargs)


def test_states_of_a_sample_have_its_reward_as_target():
    m = alone(method(samples_per_prompt=2))
    torch.manual_seed(1)
    found = m.collect({"prompt": ["a", "b"], "columns": {}, "index": [0, 1]})
    assert found["x"].shape == (2 * 2 * 3, *m.policy.latent_shape)  # not the finished samples
    assert found["prompt"] == ["a"] * 6 + ["b"] * 6 and found["t"].tolist() == m.rollout.timesteps(m.policy)[1:4].tolist() * 4
    assert torch.equal(found["target"].view(4, 3), found["target"].view(4, 3)[:, :1].expand(4, 3))
    rewards = found["target"].view(4, 3)[:, 0]
    assert m.value.mean == rewards.mean() and m.value.std == rewards.std()
    loss = m.batch_loss(found)
    predicted = m.value(m.policy, found["x"], None, found["t"], found["prompt"])
    torch.testing.assert_close(loss, (predicted - found["target"]).square().mean() / rewards.var())


def test_training_moves_the_value_alone_and_leaves_it_on_disk(tmp_path):
    m = method(updates=2, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    t = trainer(tmp_path, max_epochs=3)
    t.fit(m, prompts(6))
    moved = {n for n, p in m.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(n.startswith("value.") for n in moved) and t.callback_metrics["train/loss"].isfinite()
    x, at, texts = torch.randn(2, *m.policy.latent_shape), torch.tensor([500, 20]), ["a", "b"]
    again = LatentValue(16, str(tmp_path / "value/latent_value.safetensors"))
    torch.testing.assert_close(again(m.policy, x, None, at, texts), m.value(m.policy, x, None, at, texts), atol=0.2, rtol=2e-3)  # float16
    sampler = Sampler(4, 1.0, DDIM(1.0), [SVDD(value=again, candidates=3)])
    calls = sampler(m.policy, texts, seeds=[0, 1]).calls
    assert calls["nfe_forward"] == 4 and calls["reward_calls"] == 9 and calls["decodes"] == 0


def test_it_fits_a_value_that_the_latents_know():
    m, g = alone(method()), torch.Generator().manual_seed(0)
    x = torch.randn(256, *m.policy.latent_shape, generator=g)
    rows = {"x": x, "t": torch.full((256,), 20), "prompt": ["a"] * 256, "target": x.mean((1, 2, 3)) * 10}
    optimizer = torch.optim.AdamW(m.value.parameters(), lr=3e-3)
    first = m.batch_loss(rows).item()
    for _ in range(60):
        optimizer.zero_grad()
        m.batch_loss(rows).backward()
        optimizer.step()
    assert m.batch_loss(rows).item() < 0.3 * first


def test_it_sees_time_and_caption():
    m = method()
    x = torch.randn(1, *m.policy.latent_shape).expand(3, -1, -1, -1)
    v = m.value(m.policy, x, None, torch.tensor([500, 20, 500]), ["a dog", "a dog", "a cat"])
    assert len(set(v.tolist())) == 3
