from functools import partial

import pytest
import torch
from parts import prompts, sgd, spy, tiny, trainer
from preferences import at, collecting

from lit_align.algorithms.preference.offline_pso import OfflinePSO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM


def test_offline_pso_learns_at_the_samplers_times_alone(tmp_path):
    policy = tiny()
    method = OfflinePSO(policy=policy, rollout=Sampler(3, 1.0, DDIM(1.0)), updates=2, optimizer=sgd())
    with spy(method, "loss") as loss:
        trainer(tmp_path).fit(method, prompts(8, win=torch.rand(8, 3, 16, 16)))
    seen = [call.args[0] for call in loss.call_args_list]
    times = torch.cat([e.t for e in seen])
    assert set(times.tolist()) == set(policy.process.timesteps(3)[:-1].tolist())
    assert seen[0].gap.abs().max() == 0 and seen[-1].gap.abs().max() > 0


def test_offline_psos_loss_is_diffusion_dpos(policy):
    assert OfflinePSO(policy=policy, beta=1.0).loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)


def test_offline_psos_winners_are_the_targets_and_losers_the_references_samples():
    method = collecting(OfflinePSO)
    win = torch.randn(2, *method.policy.latent_shape)
    torch.manual_seed(1)
    pairs = method.collect({"prompt": ["a", "b"], "win_latents": win})
    draw = partial(method.rollout, method.policy, ["a", "b"])
    torch.manual_seed(1)
    with torch.no_grad(), method.policy.reference():
        want = draw().x
    torch.manual_seed(1)
    own = draw().x
    assert torch.equal(pairs["win_latents"], win)
    torch.testing.assert_close(pairs["lose_latents"], want)
    assert not torch.allclose(own, want, atol=1e-3)


def test_offline_psos_pairs_are_noised_to_the_samplers_times_and_no_others():
    method = collecting(OfflinePSO)
    x = torch.randn(200, *method.policy.latent_shape)
    t, eps = method.noise(x, {})
    grid = method.rollout.timesteps(method.policy)
    assert set(t.tolist()) == set(grid[:-1].tolist()) and torch.equal(t[:100], t[100:]) and torch.equal(eps[:100], eps[100:])
