"""Preference methods on pairs that the policy makes itself."""

import math

import pytest
import torch
from parts import Darkness, prompts, spy, tiny, trained, trainer

from lit_align.algorithms.preference.nash_md import NashMD
from lit_align.algorithms.preference.online_dpo import OnlineDPO
from lit_align.algorithms.preference.spin import SPINDiffusion
from lit_align.diffusion.sampler import Sampler


@pytest.mark.parametrize("cls", [OnlineDPO, SPINDiffusion, NashMD], ids=lambda c: c.__name__)
def test_collected_pairs_are_learnt_from(tmp_path, cls):
    policy, t = tiny(), trainer(tmp_path)
    rest = {} if cls is SPINDiffusion else {"reward": Darkness()}
    method = cls(policy=policy, rollout=Sampler(2, 1.0), updates=3, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), **rest)
    before = [p.detach().clone() for p in trained(policy)]
    with spy(method, "logged_loss") as measure:
        t.fit(method, prompts(4, 2, win=torch.rand(4, 3, policy.resolution, policy.resolution)))
    losses = measure.results
    assert t.global_step == 6 and len(losses) == 6
    if cls is not NashMD:
        assert losses[0].item() == pytest.approx(math.log(2), abs=1e-5)
    assert all(not torch.equal(a, b) for a, b in zip(before, trained(policy)))
