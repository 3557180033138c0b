import math
from functools import partial

import lightning as L
import pytest
import torch
from online import policy_gradient, quiet, step
from parts import Darkness, prompts, sgd, spy, tiny, trained, trainer

from lit_align.algorithms.parts.advantages import Group
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Full

ddpo = partial(policy_gradient, DDPO)


@pytest.mark.parametrize("ratio,advantage,expected,slope", [
    (1.0, 2.0, -2.0, -2.0), (1.2, 1.0, -1.1, 0.0), (0.8, 1.0, -0.8, -0.8), (1.2, -1.0, 1.2, 1.2), (0.8, -1.0, 0.9, 0.0),
])  # fmt: skip
def test_clipping_binds_on_the_favourable_side_alone(ratio, advantage, expected, slope):
    method, s = quiet(ddpo(clip_range=0.1)), step(math.log(ratio), advantage)
    loss = method.loss(s)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, abs=1e-5) and s.log_prob.grad.item() == pytest.approx(slope, abs=1e-5)


def test_one_update_is_the_policy_gradient_of_all_steps(tmp_path):
    """DDPO-SF: the gradient is that of -mean over samples and steps of A log p, whatever the minibatch."""
    grads = []
    for minibatch in (2, 100):
        method = ddpo(minibatch=minibatch, max_grad_norm=1e9, optimizer=sgd(0.0))
        with spy(method, "collect") as collect:
            trainer(tmp_path).fit(method, prompts())
        trajectory, advantage = collect.results[0]
        grads.append(torch.cat([p.grad.flatten() for p in trained(method)]))
        loss = 0.0
        for i in range(trajectory.t.shape[1]):
            m = trajectory.minibatch(torch.arange(4), torch.full((4,), i))
            g, _, _ = method.rollout.gaussian(method.policy, m["x_t"], m["t"], m["s"], m["cond"])
            loss = loss - (advantage * g.log_prob(m["x_s"])).mean() / trajectory.t.shape[1]
        want = torch.autograd.grad(loss, trained(method))
        torch.testing.assert_close(grads[-1], torch.cat([w.flatten() for w in want]), rtol=1e-3, atol=1e-6 + 1e-3 * grads[-1].abs().max().item())


def test_the_gradient_is_that_of_the_expected_reward():
    """On a denoiser of one weight and latents of one number: against a central difference of the mean reward of samples
    from the same noise."""
    method, n = quiet(ddpo(rollout=Sampler(4, 1.0, DDIM(1.0)), minibatch=10**9, clip_range=1e9)), 100_000
    policy, weight = method.policy, torch.tensor(0.3, requires_grad=True)
    policy.denoise = lambda x, t, cond, guidance_scale=1.0: weight * x
    cond, x = {"text": torch.zeros(n, 1)}, torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))

    def rollout(value, record=False):
        torch.manual_seed(3)
        weight.data.fill_(value)
        return method.rollout(policy, cond=cond, x=x, record=record)

    reward = lambda state: -(state.x.flatten() - 1).square()
    h = 1e-2
    want = (reward(rollout(0.3 + h)).mean() - reward(rollout(0.3 - h)).mean()) / (2 * h)
    state = rollout(0.3, record=True)
    r = reward(state)
    steps = method.trained_steps(state.trajectory)
    (m,) = method.update(state.trajectory, (r - r.mean())[:, None].expand(n, 4), torch.arange(n)[:, None], steps)
    (grad,) = torch.autograd.grad(method.batch_loss(m), weight)
    got = -grad * len(steps)  # the loss is a mean over steps
    assert abs(want) > 0.1 and got.item() == pytest.approx(want.item(), rel=0.05)


@pytest.mark.slow
def test_ddpo_raises_its_reward(tmp_path):
    L.seed_everything(0)
    sampler = Sampler(4, 1.0, DDIM(1.0))
    method = ddpo(tiny(adapter=Full()), samples_per_prompt=16, minibatch=128, advantage=Group(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), clip_range=0.1, rollout=sampler)

    def reward():
        with torch.no_grad():  # the same noise every time
            return Darkness()(method.policy.decode(sampler(method.policy, ["p0", "p1"] * 32, seeds=range(64)).x), None)

    before = reward()
    trainer(tmp_path).fit(method, prompts(2, 24))
    gain = reward() - before
    assert gain.mean() > 3 * gain.std() / 8  # three standard errors
