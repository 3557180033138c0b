"""DPO-Kernels, written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from preferences import attached, batch, still

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.dpo_kernels import DPOKernels
from lit_align.algorithms.preference.preference import Errors


def test_the_rbf_kernel_is_diffusion_dpo():
    policy = still(scale=0.1)
    kernels, dpo = (attached(c) for c in (DPOKernels(policy=policy, beta=30.0, kernel="rbf"), DiffusionDPO(policy=policy, beta=30.0)))
    data = batch(policy)
    losses = []
    for method in (kernels, dpo):
        torch.manual_seed(2)
        losses.append(method.batch_loss(data).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and losses[0] != pytest.approx(math.log(2), abs=1e-4)


def test_other_kernels_written_out():
    policy = still(scale=0.1)
    p, e, r = torch.randn(3, 4, 2, 3, 3)
    errors = Errors(*torch.zeros(4, 2), prediction=p, target=e, reference=r)
    got = DPOKernels(policy=policy, beta=2.0, kernel="polynomial", degree=3, divergence="js").loss(errors)
    log_k = lambda a: 3 * math.log(1 + max(-0.99, sum((x * y).item() for x, y in zip(a[0].flatten(), a[1].flatten())) / 18))
    u = [2 * (log_k((p[i], e[i])) - log_k((r[i], e[i]))) for i in range(4)]
    ls = lambda x: -math.log1p(math.exp(-x))
    assert got.tolist() == pytest.approx([-ls(ls(u[i]) - ls(u[i + 2])) for i in range(2)], abs=1e-5)
    got = DPOKernels(policy=policy, beta=2.0, kernel="mahalanobis").loss(errors)
    var = ((r - e) ** 2).mean(0)
    d = lambda a: ((a - e) ** 2 / var * var.mean()).mean((1, 2, 3))
    u = 2 * (d(r) - d(p))
    torch.testing.assert_close(got, -F.logsigmoid(u[:2] - u[2:]))
