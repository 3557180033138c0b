"""Training on one's own samples: seeds of the batches, and a new reference now and then."""

import os
from types import SimpleNamespace
from unittest import mock

import lightning as L
import pytest
import torch
from online import policy_gradient
from parts import (
    ADAPTERS,
    Darkness,
    prompts,
    sgd,
    spy,
    tiny,
    trainer,
)

from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.preference.online_dpo import OnlineDPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion import StableDiffusion


@ADAPTERS
def test_a_moving_reference_survives_a_checkpoint(tmp_path, adapter):
    make = lambda: OnlineDPO(policy=tiny(StableDiffusion, adapter), reward=Darkness(), rollout=Sampler(2, 1.0), updates=1, refresh_every=2,
                             optimizer=sgd(1e-2), beta=100.0)  # fmt: skip
    options = {"max_epochs": -1, "enable_checkpointing": False}
    L.seed_everything(3, verbose=False)
    whole = make()
    trainer(tmp_path, max_steps=5, **options).fit(whole, prompts(4, 5))
    L.seed_everything(3, verbose=False)
    half = make()
    t = trainer(tmp_path, max_steps=3, **options)
    t.fit(half, prompts(4, 5))
    t.save_checkpoint(tmp_path / "half.ckpt")
    L.seed_everything(3, verbose=False)
    rest = make()
    trainer(tmp_path, max_steps=5, **options).fit(rest, prompts(4, 2), ckpt_path=tmp_path / "half.ckpt")
    a, b = whole.state_dict(), rest.state_dict()
    assert any("reference" in k or "_frozen" in k for k in a) and a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)


@ADAPTERS
def test_a_test_compares_with_the_base_though_the_reference_moved(tmp_path, adapter):
    make = lambda: OnlineDPO(policy=tiny(StableDiffusion, adapter), reward=Darkness(), rollout=Sampler(2, 1.0), updates=1, refresh_every=1,
                             sampler=Sampler(2, 1.0), rewards=[Darkness()], optimizer=sgd(), beta=100.0)  # fmt: skip
    moved = make()
    t = trainer(tmp_path)
    t.fit(moved, prompts(4, 3))
    t.save_checkpoint(tmp_path / "moved.ckpt")
    tested, batch = make(), {"prompt": ["a"], "index": [0], "seed": [0]}
    base = tested.sample(batch)["image"]
    with spy(tested, "reference_sample") as reference:
        trainer(tmp_path).test(tested, torch.utils.data.DataLoader([batch], batch_size=None), ckpt_path=tmp_path / "moved.ckpt")
    torch.testing.assert_close(reference.results[0]["image"], base)
    assert not torch.allclose(tested.sample(batch)["image"], base, atol=1e-3)


@pytest.mark.parametrize("every, want", [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2])])
def test_the_reference_moves_after_the_last_step_of_every_so_many_batches(tmp_path, every, want):
    """By batch numbers, from 0; the policy has made all updates of the batch by then."""
    method, seen = policy_gradient(DDPO, rollout=Sampler(1, 1.0, DDIM(1.0)), updates=2, refresh_every=every), []
    note = lambda: seen.append((method.batch_number, method.global_step))
    with mock.patch.object(method.policy, "update_reference", side_effect=note):
        trainer(tmp_path).fit(method, prompts(2, 5))
    assert seen == [(number, 2 * (number + 1)) for number in want]


def test_every_batch_has_noise_of_its_own_and_a_second_run_has_the_same(tmp_path):
    def starts(seed):
        L.seed_everything(seed, verbose=False)
        method = policy_gradient(DDPO, optimizer=sgd(0.0))
        with spy(method, "collect") as collect:
            trainer(tmp_path).fit(method, prompts(1, 3))
        return [trajectory.x_t[:, 0] for trajectory, _ in collect.results]

    first, again, other = starts(1), starts(1), starts(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = torch.cat(first + other)  # (2 seeds x 3 batches x 2 samples, ...)
    assert len(drawn.flatten(1).unique(dim=0)) == 12


def test_no_two_of_batches_ranks_and_seeds_draw_alike():
    method, drawn = policy_gradient(DDPO), set()
    for seed in range(3):
        for number in range(4):
            for rank in range(2):
                loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=number))
                method._trainer = SimpleNamespace(world_size=2, global_rank=rank, fit_loop=loop, accumulate_grad_batches=1)
                with mock.patch.dict(os.environ, PL_GLOBAL_SEED=str(seed)):
                    method.on_train_batch_start({}, 0)
                drawn.add(torch.rand(1).item())
    assert len(drawn) == 3 * 4 * 2
