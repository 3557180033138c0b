"""What every forward-process method does. A new file is tested unasked."""

import math
from functools import cache
from unittest import mock

import lightning as L
import parts
import pytest
import torch
from online import forward_process
from parts import POLICIES, Darkness, alone, by_name, methods_of, move, prompts, sgd, spy, tiny, trained, trainer

from lit_align.algorithms.forward_process.awm import AWM
from lit_align.algorithms.forward_process.crd import CRD
from lit_align.algorithms.forward_process.dgpo import DGPO
from lit_align.algorithms.forward_process.forward_process import ForwardProcess
from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA

EXTRA = {CRD: {"reference_guidance": 1.0, "sampling_decay": (0.4, 0.0, 0.4, 0)}}
METHODS = methods_of(ForwardProcess)


def make(cls, policy=None, scale=1.0, **kwargs):
    """A method whose rewards are `scale` times what they are."""
    return forward_process(cls, policy, **({"reward": Darkness(scale)} | EXTRA.get(cls, {}) | kwargs))


@cache
def change(cls, scale):
    """What a training step adds to the policy's trained parameters."""
    L.seed_everything(0, verbose=False)
    return parts.change(make(cls, scale=scale, optimizer=sgd(1e-2)))


def test_the_family_is_found():
    assert {DiffusionNFT, AWM, DGPO, CRD} <= set(METHODS)


@POLICIES
@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_it_starts_at_the_old_policy_and_a_step_moves_what_is_trained_and_drags_the_old_one_along(tmp_path, cls, family, adapter):
    method, t = make(cls, tiny(family, adapter), decay=(0.25, 0.0, 0.25, 0)), trainer(tmp_path)
    policy = method.policy
    frozen = lambda: [p for k in ("vae", "text_encoder") for p in getattr(policy.pipe, k).parameters()]
    before, still = {n: p.detach().clone() for n, p in policy.named_parameters()}, [p.detach().clone() for p in frozen()]
    with spy(method, "noised_batch") as noised_batch:
        t.fit(method, prompts())
    assert t.global_step == 1 and math.isfinite(t.callback_metrics["train/loss"])
    first = noised_batch.results[0]
    for other, used in ((first.old, method.uses_old), (first.ref, method.uses_reference)):
        assert (other is not None) == used
        if used:
            torch.testing.assert_close(other, first.pred.detach(), atol=1e-6, rtol=1e-6)
    after = dict(policy.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved and moved <= {n for n, p in after.items() if p.requires_grad}
    assert all(torch.equal(a, b) for a, b in zip(still, frozen(), strict=True))
    for name, (decay, *_) in method.decays.items():
        for n in moved:
            kept = n.replace(".default.", f".{name}.") if isinstance(adapter, LoRA) else n.replace("denoiser.", f"_frozen.{name}.")
            torch.testing.assert_close(after[kept], decay * before[n] + (1 - decay) * after[n])


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_equal_rewards_move_nothing(cls):
    assert change(cls, 0.0).norm() < 1e-4 * change(cls, 1.0).norm()


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_the_first_update_turns_with_the_sign_of_the_reward(cls):
    up, down = change(cls, 1.0), change(cls, -1.0)
    assert torch.cosine_similarity(up, down, dim=0) < -0.5 and up.any()


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_the_gradient_of_an_optimizer_step_does_not_depend_on_the_minibatch(cls):
    method, grads, losses = alone(make(cls)), [], []
    move(method.policy)
    mock.patch.object(method, "noise", lambda x_0: x_0.flip(-1) - 1).start()  # nothing is drawn
    g = torch.Generator().manual_seed(1)
    x_0, advantage = torch.randn(6, *method.policy.latent_shape, generator=g), torch.randn(6, generator=g)
    t = Sampler(4, 1.0).timesteps(method.policy)[:3].expand(6, 3)
    collected = {"x_0": x_0, "t": t, "advantage": advantage, "weight": torch.ones(6), "cond": method.policy.condition(["a", "b"])}
    for minibatch in (3, 100):
        method.minibatch = minibatch
        (minibatches,) = method.optimizer_steps(collected)
        assert len(minibatches) == (6 if minibatch == 3 else 1)
        loss = sum(method.batch_loss(m) for m in minibatches)
        grads.append(torch.autograd.grad(loss, trained(method.policy)))
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert any(g.any() for g in grads[0])
