import math

import pytest
import torch
from online import compared, policy_gradient
from parts import T

from lit_align.algorithms.trajectory_preference.dense_reward import DenseReward
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM


def test_dense_reward_on_given_steps():
    dense = policy_gradient(DenseReward, samples_per_prompt=3, rollout=Sampler(50, 1.0, DDIM(1.0)))
    grid = dense.rollout.timesteps(dense.policy)[:-1]
    w = dense.weight(grid.float()) / 50
    assert w[0].item() == pytest.approx(0.10051805, abs=1e-6) and w[-1].item() == pytest.approx(5.7561e-4, abs=1e-7)
    assert w[:10].sum().item() == pytest.approx(0.65469571, abs=1e-5)
    first = (int(grid[0]),)
    same = dense.loss(compared(torch.zeros(3), T([3.0, 2.0, 1.0]), first)).item() / (50 * 0.10051805)
    assert same == pytest.approx(math.log(6), abs=1e-5)
    far = T([1.0, 0.0, -1.0], requires_grad=True)
    loss = dense.loss(compared(far, T([3.0, 2.0, 1.0]), first))
    a = 12.5 * 5e-4
    want = math.log(1 + math.exp(-a) + math.exp(-2 * a)) + math.log1p(math.exp(-a))
    assert loss.item() / (50 * 0.10051805) == pytest.approx(want, abs=1e-5)
    loss.backward()
    assert far.grad[0] == 0 and far.grad[2] == 0  # beyond the trust region
