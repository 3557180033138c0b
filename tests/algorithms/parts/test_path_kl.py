"""The KL of a path against the plain graph."""

import pytest
import torch
from parts import T

from lit_align.algorithms.parts.path_kl import PathKL
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


@pytest.mark.parametrize("adapter", [lambda: LoRA(rank=2), Full], ids=["lora", "full"])
@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_the_path_kls_gradient_is_that_of_the_plain_graph(family, moving, adapter):
    """Through theta, and through x_t into both networks."""
    against_the_plain_graph(family("tiny", adapter()), moving, all_steps(3))


@pytest.mark.parametrize("keep", [(0, 1, 0), (1, 0, 1), (1, 0, 0)], ids=str)
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_a_step_whose_prediction_is_a_constant_adds_a_constant(family, keep):
    """Gradient passes it along x_t -> x_s, to later steps, and its own KL has none."""
    against_the_plain_graph(family("tiny", LoRA(rank=2)), False, T(keep).bool())


def against_the_plain_graph(policy, moving, keep):
    rollout = Sampler(3, 2.0, FlowSDE() if isinstance(policy, StableDiffusion3) else DDIM(1.0))
    policy.add_reference(moving)
    trained, generator = [p for p in policy.parameters() if p.requires_grad], torch.Generator().manual_seed(7)
    for p in trained:
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    cond, grid = policy.condition(["a", "b"]), rollout.timesteps(policy)
    torch.manual_seed(3)
    path = PathKL(rollout, "mean")
    state = rollout(policy, cond=cond, hooks=(path,), grad=keep)
    got_kl = path.kl(state)
    (got_kl.sum() + state.x.mean()).backward()
    got = torch.cat([p.grad.flatten() for p in trained])
    assert all(p.grad is None for p in policy.parameters() if not any(p is q for q in trained))
    assert all(p.requires_grad for p in trained) and sum(p.requires_grad for p in policy.parameters()) == len(trained)

    torch.manual_seed(3)
    x, kl = torch.randn(2, *policy.latent_shape), 0
    for t, s, kept in zip(grid, grid[1:], keep):
        at = (x, t.expand(2), s.expand(2), cond)
        x_0, eps = rollout.predict(policy, x, t.expand(2), cond, bool(kept))
        now = rollout.transition(policy.process, x, x_0, eps, *at[1:3])
        with policy.reference():
            before = rollout.gaussian(policy, *at)[0]
        step = ((now.mean - before.mean) ** 2 / (2 * now.std**2)).flatten(1).mean(1)
        kl = kl + (step if kept else step.detach())
        x = now.mean + now.std * torch.randn_like(x)
    torch.testing.assert_close(got_kl, kl, rtol=1e-4, atol=1e-7)
    want = torch.autograd.grad(kl.sum() + x.mean(), trained)
    want = torch.cat([g.flatten() for g in want])
    assert want.norm() > 0 and (got - want).norm() < 2e-3 * want.norm()


def test_steps_without_gradient_count_as_constants_and_a_rollout_without_noise_is_refused():
    policy = StableDiffusion("tiny", LoRA(rank=2))
    for p in policy.parameters():
        p.data += 0.05 * torch.randn_like(p) if p.requires_grad else 0
    rollout = Sampler(3, 1.0, DDIM(1.0))
    path = PathKL(rollout)
    kl = path.kl(rollout(policy, ["a"], hooks=(path,), grad=torch.zeros(3, dtype=torch.bool)))
    assert kl.item() > 0 and not kl.requires_grad
    with pytest.raises(ValueError, match="has no noise"):
        Sampler(2, 1.0)(policy, ["a"], hooks=(PathKL(Sampler(2, 1.0)),))
