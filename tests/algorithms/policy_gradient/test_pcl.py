from unittest import mock

import pytest
import torch
from online import policy_gradient, quiet
from parts import T, move, prompts, sgd, tiny, trained, trainer

from lit_align.algorithms.policy_gradient.pcl import PCL
from lit_align.policies.adapters import Full


def test_the_soft_optimal_policy_and_its_value_leave_no_residual():
    """Three steps x' = x + N(0, 1) in one dimension, r(x) = x: p* adds 1 / alpha to each mean, V(x_k) = x_k + (3 - k) / (2 alpha)."""
    alpha, x = 2.0, torch.randn(50, 4).cumsum(1)
    value = x[:, :3] + torch.arange(3, 0, -1) / (2 * alpha)
    move = x.diff(dim=1)
    log_ratio = (move.square() - (move - 1 / alpha).square()) / 2
    for length in (1, 2, 3, None):
        method = policy_gradient(PCL, alpha=alpha, length=length)
        assert method.residual(log_ratio, value, x[:, 3]).abs().max() < 1e-5
        assert method.residual(0 * log_ratio, value, x[:, 3]).abs().mean() > 0.1


@pytest.mark.parametrize("length, want", [(1, [1.8, 1.6, 0.4]), (2, [3.4, 2.0, 0.4]), (3, [3.8, 2.0, 0.4])])
def test_a_path_ends_after_its_length_or_with_the_reward(length, want):
    """V = 3, 5, 7, r = 8; log p / p_ref = 0.1, 0.2, 0.3; alpha 2: 5 - 3 - 2 x 0.1, and so on."""
    method = policy_gradient(PCL, alpha=2.0, length=length)
    torch.testing.assert_close(method.residual(T([[0.1, 0.2, 0.3]]), T([[3.0, 5.0, 7.0]]), T([8.0])), T([want]))


@pytest.mark.parametrize("length", [1, 2, None])
def test_pcls_two_passes_are_the_gradient_of_the_one_graph(tmp_path, length):
    """Of policy and value, against the mean square of paths that are added up one by one."""
    method = policy_gradient(PCL, tiny(adapter=Full()), alpha=3.0, length=length, minibatch=3, optimizer=sgd(0.0), value_lr=0.0, max_grad_norm=1e9)
    kept, optimizer_steps = {}, method.optimizer_steps

    def moved(collected):
        trajectory, reward = collected
        move(method.policy, 0.01)
        yield from optimizer_steps((trajectory, reward))
        kept.update(trajectory=trajectory, reward=reward, grad=[p.grad.clone() for p in trained(method)])

    with mock.patch.object(method, "optimizer_steps", moved):
        trainer(tmp_path).fit(method, prompts(1))
    tr, r = kept["trajectory"], kept["reward"]
    rows, i = (c.flatten() for c in torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij"))
    assert method.trained_steps(tr).tolist() == [0, 1, 2]
    step = quiet(method).evaluate(tr, tr.log_prob, rows, i)
    value = method.value(step.x_t, method.policy.summary(step.cond), step.t).view(2, 3)
    log_ratio, loss = step.log_ref_ratio.view(2, 3), 0
    for n in range(2):
        for k in range(3):
            end = min(k + (length or 3), 3)
            after = r[n] if end == 3 else value[n, end]
            loss = loss + (after - value[n, k] - 3.0 * sum(log_ratio[n, j] for j in range(k, end))).square() / 6
    want = torch.autograd.grad(loss, trained(method))
    for part in ("policy", "value"):
        pairs = [(a, b) for (name, p), a, b in zip([x for x in method.named_parameters() if x[1].requires_grad], kept["grad"], want) if name.startswith(part)]
        scale = max(b.abs().max() for _, b in pairs)
        assert scale > 0
        for a, b in pairs:
            torch.testing.assert_close(a / scale, b / scale, atol=1e-4, rtol=1e-3)
