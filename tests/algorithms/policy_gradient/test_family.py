"""What every method of the policy-gradient family does, trajectory preferences included. A new file is tested unasked."""

from functools import cache

import lightning as L
import parts
import pytest
import torch
from online import Mean, policy_gradient
from parts import (
    POLICIES,
    BlackBox,
    Darkness,
    alone,
    by_name,
    methods_of,
    move,
    prompts,
    sgd,
    spy,
    tiny,
    trained,
    trainer,
)

from lit_align.algorithms.policy_gradient.branch_grpo import BranchGRPO
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.ddrl import DDRL
from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.algorithms.policy_gradient.gardo import GARDO
from lit_align.algorithms.policy_gradient.pcl import PCL
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR
from lit_align.algorithms.policy_gradient.tempflow_grpo import TempFlowGRPO
from lit_align.algorithms.policy_gradient.tree_grpo import TreeGRPO
from lit_align.algorithms.reward_gradient.adjoint_matching import AdjointMatching
from lit_align.algorithms.reward_gradient.nabla_gflownet import NablaGFlowNet
from lit_align.algorithms.trajectory_preference.spo import SPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM

EXTRA = {
    AdjointMatching: {"rollout": Sampler(3, 2.0, DDIM(1.0)), "scale": 10.0},
    BranchGRPO: {"samples_per_prompt": 1, "splits": (0, 1)},
    DDRL: {"data_weight": 0.0},
    GARDO: {"judges": [BlackBox()], "features": Darkness(), "gated": 0.5},
    TempFlowGRPO: {"branches": 2},
    TreeGRPO: {"samples_per_prompt": 1, "splits": (0, 1), "branching": 2},
    NablaGFlowNet: {"scale": 10.0},
    SPO: {"samples_per_prompt": 1, "skip_steps": 0, "candidates": 3, "threshold": (0.0, 0.0)},
}
METHODS = methods_of(PolicyGradient)
BASELINES = [DPOK, PCL, TDPOR]  # equal rewards move these: their baseline has to be learnt first


def make(cls, policy=None, scale=1.0, **kwargs):
    """A method whose rewards are `scale` times what they are."""
    reward = Mean(scale=100 * scale) if issubclass(cls, SPO) else Darkness(scale)
    method = policy_gradient(cls, policy, **({"reward": reward} | EXTRA.get(cls, {}) | kwargs))
    if cls is DDRL:  # its data weighs nothing here
        method.feedback = ("prompt",)
        method.latents = lambda batch, key: torch.zeros(len(batch["prompt"]), *method.policy.latent_shape)
    return method


@cache
def change(cls, scale):
    """What a training step adds to the policy's trained parameters."""
    L.seed_everything(0, verbose=False)
    return parts.change(make(cls, scale=scale, optimizer=sgd(1e-2)))


def test_the_family_is_found():
    assert {DDPO, BranchGRPO, SPO, *BASELINES} < set(METHODS) and len(METHODS) >= 12


@POLICIES
@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_it_starts_at_its_reference_with_ratios_of_1_and_moves_what_is_trained(tmp_path, cls, family, adapter):
    method = make(cls, tiny(family, adapter))
    parts = lambda: dict(method.named_parameters()) | {f"{k}.{n}": p for k in ("vae", "text_encoder") for n, p in getattr(method.policy.pipe, k).named_parameters()}
    before = {n: p.detach().clone() for n, p in parts().items()}
    with spy(method, "evaluate") as evaluate:
        trainer(tmp_path).fit(method, prompts(1))
    first = evaluate.results[0]
    assert (first.ratio - 1).abs().max() < 1e-6
    assert (first.reference is not None) == method.uses_reference
    if method.uses_reference:
        assert first.gaussian.kl(first.reference).max() < 1e-10
    after = parts()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    may_move = {n for n, p in method.named_parameters() if p.requires_grad}
    assert moved <= may_move and any(n.startswith("policy.") for n in moved)
    beside = {n for n in may_move if not n.startswith("policy.")}
    assert (cls in BASELINES) == bool(beside) == bool(beside & moved)


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls not in BASELINES], **by_name)
def test_equal_rewards_move_nothing(cls):
    assert not change(cls, 0.0).any()


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_the_first_update_turns_with_the_sign_of_the_reward(cls):
    up, down = change(cls, 10.0), change(cls, -10.0)
    assert torch.cosine_similarity(up, down, dim=0) < -0.5 and up.any()


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_the_gradient_of_an_optimizer_step_does_not_depend_on_the_minibatch(cls):
    method, grads = alone(make(cls, scale=10.0, minibatch=100)), []
    collected = method.collect({"prompt": ["a", "b"]})
    move(method.policy, 1e-3)
    for minibatch in (1, 100):
        method.minibatch = minibatch
        torch.manual_seed(1)
        minibatches = next(iter(method.optimizer_steps(collected)))
        assert (len(minibatches) > 1 + (cls is DDRL)) == (minibatch == 1)
        loss = sum(method.batch_loss(m) for m in minibatches)
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(method.policy))]))
    scale = grads[0].abs().max()
    assert scale > 0
    torch.testing.assert_close(grads[0] / scale, grads[1] / scale, atol=1e-2, rtol=1e-2)
