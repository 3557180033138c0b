"""RWR's weights against hand numbers, and training."""

import lightning as L
import pytest
import torch
from parts import T, prompts, trainer
from preferences import still
from weighted import make

from lit_align.algorithms.reward_weighted.rwr import RWR
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Full
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.reward import Reward


def test_exponential_weights():
    weight = make(RWR, still()).weights(T([[4.0, 5.0, 6.0, 7.0]]))
    torch.testing.assert_close(weight, T([[0.722629, 0.882621, 1.078035, 1.316715]]), atol=1e-6, rtol=0)
    r = T([[4.0, 5.0], [6.0, 7.0]])
    torch.testing.assert_close(make(RWR, still()).weights(r).flatten(), weight[0])  # over the collection
    each = make(RWR, still(), per_prompt=True).weights(r)
    low = 2 / (1 + 2.718281828**0.2)
    torch.testing.assert_close(each, T([[low, 2 - low]] * 2))


def test_sparse_weights_keep_the_best_and_those_alike():
    sparse = lambda r, **kwargs: make(RWR, still(), weighting="sparse", **kwargs).weights(T(r))
    r = [[float(i) for i in range(10)]]
    assert sparse(r).tolist() == [[0.0] * 9 + [10.0]]  # the 90th percentile of 0 .. 9 is 8.1
    assert sparse([[0.0, 3.0, 3.0, 1.0]], quantile=0.75).tolist() == [[0.0, 2.0, 2.0, 0.0]]
    assert sparse([[5.0, 1.0], [2.0, 9.0]], quantile=1.0).tolist() == [[0.0, 0.0], [0.0, 4.0]]
    assert sparse([[5.0, 1.0], [2.0, 9.0]], quantile=1.0, per_prompt=True).tolist() == [[2.0, 0.0], [0.0, 2.0]]


class FirstChannel(Reward):
    name, differentiable = "first_channel", True

    def forward(self, images, prompts):
        return images[:, 0].mean((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_rwr_raises_the_reward(tmp_path, seed):
    """On held-out prompts from the same noise before and after, by more than a deviation of the samples' reward, which
    training with equal weights does not. (The reward sees the latents: a tiny decoder passes little on.)"""
    gains = {}
    for tau in (8.0, 0.0):
        L.seed_everything(seed, verbose=False)
        few = {"rollout": Sampler(4, 1.0), "sampler": Sampler(4, 1.0)}
        method = make(RWR, StableDiffusion3("tiny", Full()), reward=FirstChannel(), tau=tau, updates=8, **few)
        method.policy.decode = lambda z: z
        held_out = {"prompt": [f"p{i}" for i in range(16)], "seed": list(range(1000, 1016))}
        score = lambda: method.reward(method.sample(held_out)["image"], held_out["prompt"])
        before = score()
        trainer(tmp_path).fit(method, prompts(8, 6))
        gains[tau] = score() - before
    assert gains[8.0].mean() > before.std() and (gains[8.0] > 0).float().mean() > 0.9
    assert gains[0.0].mean() < before.std()
