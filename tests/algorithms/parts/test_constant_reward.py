"""The warning for a run whose rewards are all the same number."""

import warnings
from unittest import mock

import pytest
import torch
from online import policy_gradient
from parts import Darkness, prompts, sgd, trainer

from lit_align.algorithms.parts.constant_reward import ConstantReward
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM


class Until(Darkness):
    """20.95 for every sample of the first `n` calls."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, images, prompts):
        self.n -= 1
        return torch.full((len(images),), 20.95) if self.n >= 0 else super().forward(images, prompts)


def fit(tmp_path, reward, batches):
    method = policy_gradient(DDPO, reward=reward, rollout=Sampler(1, 1.0, DDIM(1.0)), optimizer=sgd(0.0))
    mock.patch.object(method, "_constant_reward", ConstantReward(steps=3)).start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path).fit(method, prompts(1, batches))
    return [str(w.message) for w in caught if "nothing to learn" in str(w.message)]


@pytest.mark.parametrize("equal, batches, warned", [(9, 9, 1), (3, 3, 1), (9, 2, 0), (2, 5, 0), (0, 5, 0)])
def test_equal_rewards_of_the_first_steps_are_said_once(tmp_path, equal, batches, warned):
    found = fit(tmp_path, Until(equal), batches)
    assert len(found) == warned
    assert all("all rewards of the first 3 training steps are 20.95" in message for message in found)
