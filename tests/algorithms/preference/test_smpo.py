"""SmPO: smooth labels."""

import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from parts import T
from preferences import Brightness, at

from lit_align.algorithms.preference.preference import Errors
from lit_align.algorithms.preference.smpo import SmPO


def test_smooth_labels_shrink_close_pairs(policy):
    smpo = SmPO(policy=policy, reward=Brightness(), beta=1.0)
    bright = lambda *values: torch.stack([torch.full(policy.latent_shape, v) for v in values])
    with mock.patch.object(policy, "decode", lambda z: z[:, :3]):
        data = {"prompt": ["a", "b"], "index": [0, 1], "win_latents": bright(1.0, 0.5), "lose_latents": bright(0.0, 0.4)}
        p = smpo.label(data)
        assert p.tolist() == pytest.approx([1 / (1 + math.exp(-10)), 1 / (1 + math.exp(-1))], abs=1e-5)
        e = Errors(*(T([x, x]) for x in (0.0, 0.3, 0.0, 0.0)), batch=data)
        torch.testing.assert_close(smpo.loss(e), -F.logsigmoid((2 * p - 1) * 0.3))



def test_the_label_follows_the_reward_not_the_order(policy):
    """A pair whose loser scores higher is learnt the other way round."""
    smpo = SmPO(policy=policy, reward=Brightness(), beta=1.0)
    image = lambda value: torch.full((1, *policy.latent_shape), value)
    with mock.patch.object(policy, "decode", lambda z: z[:, :3]):
        data = {"prompt": ["a"], "index": [0], "win_latents": image(0.1), "lose_latents": image(0.9)}
        p = smpo.label(data)
        assert p.item() == pytest.approx(1 / (1 + math.exp(10)), abs=1e-6)
        e = at(0.3)._replace(batch=data)
        assert smpo.loss(e).item() == pytest.approx(math.log1p(math.exp((1 - 2 * p.item()) * 0.3)), abs=1e-6)
