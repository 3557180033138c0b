"""DDRL: the denoising loss on data beside the policy gradient."""

import pytest
import torch
from online import policy_gradient, quiet
from parts import alone, prompts, rollout, sgd, spy, tiny, trained, trainer
from torch import nn

from lit_align.algorithms.policy_gradient.ddrl import DDRL
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def make(cls=DDRL, **kwargs):
    policy = tiny(StableDiffusion3)
    return policy_gradient(cls, policy, **({"rollout": rollout(policy, 4), "samples_per_prompt": 4, "beta": 0.0} | kwargs))


def batch(method, n=3):
    x = torch.randn(n, *method.policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "image_latents": x}


def gradient(method, minibatches):
    loss = sum(method.batch_loss(m) for m in minibatches)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(method.policy))])


def test_the_gradient_is_the_policys_plus_data_weight_times_the_datas():
    method = alone(make(data_weight=0.3, minibatch=100))
    data = batch(method)
    torch.manual_seed(0)
    steps = next(iter(method.optimizer_steps(method.collect(data))))
    assert len(steps) == 2
    policy = gradient(method, steps[:1])
    torch.manual_seed(5)
    both = gradient(method, steps)
    torch.manual_seed(5)
    process, x_0 = method.policy.process, data["image_latents"]
    grid = method.rollout.timesteps(method.policy)[:-1]
    t, eps = grid[torch.randint(4, (3,))], torch.randn_like(x_0)
    x_t = (1 - t.view(-1, 1, 1, 1)) * x_0 + t.view(-1, 1, 1, 1) * eps
    loss = (method.policy.denoise(x_t, t, method.policy.condition(data["prompt"])) - (eps - x_0)).square().mean()
    want = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(method.policy))])
    assert process.prediction == "flow" and want.abs().max() > 0
    torch.testing.assert_close(both - policy, 0.3 * want, atol=1e-5, rtol=1e-3)


def test_every_image_counts_once_in_each_optimizer_step_whatever_the_minibatch():
    method = alone(make(minibatch=2, updates=2))
    for minibatches in method.optimizer_steps(method.collect(batch(method))):
        images = [m for m in minibatches if "x_0" in m]
        assert sum(m["share"] for m in images) == pytest.approx(1) and [len(m["x_0"]) for m in images] == [2, 1]


def test_a_step_moves_the_policy_towards_the_data(tmp_path):
    """Equal rewards leave the data alone."""
    from parts import Darkness

    method = make(reward=Darkness(0.0), data_weight=1.0, optimizer=sgd(1e-2))
    data, before = batch(method), [p.detach().clone() for p in method.policy.denoiser.parameters()]
    with spy(method, "log_mean"):
        trainer(tmp_path).fit(method, prompts(3, 1, image_latents=data["image_latents"]))
    moved = [n for (n, p), b in zip(method.policy.denoiser.named_parameters(), before) if not torch.equal(p, b)]
    assert moved and all("lora" in n for n in moved)


def test_without_the_data_it_is_flow_grpo():
    results = []
    for cls, extra in ((DDRL, {"data_weight": 0.0}), (FlowGRPO, {})):
        method = quiet(alone(make(cls, minibatch=100, **extra)))
        torch.manual_seed(0)
        results.append(gradient(method, next(iter(method.optimizer_steps(method.collect(batch(method)))))))
    torch.testing.assert_close(*results)
    assert isinstance(method, nn.Module)


def test_it_needs_images(tmp_path):
    with pytest.raises(TypeError, match="DDRL learns from prompt, image"):
        trainer(tmp_path).fit(make(), prompts(1))
