"""Flow-DPO: Diffusion-DPO in velocities."""

import torch
import torch.nn.functional as F
from preferences import attached, batch, still

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.preference.flow_dpo import FlowDPO
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def test_flow_dpo_in_velocities_is_dpo_in_noise_when_time_dependent():
    """||eps err||^2 = (1 - t)^2 ||v err||^2 (fact sheet 2.5), so beta (1 - t)^2 on velocities is beta on noise."""
    policy = still(StableDiffusion3, 0.1)
    flow = attached(FlowDPO(policy=policy, beta=20.0, time_dependent=True))
    torch.manual_seed(6)
    e = flow.errors(batch(policy))
    x_0, t = torch.randn_like(e.target), torch.cat([e.t, e.t])
    eps = e.target + x_0  # v = eps - x_0
    x_t = policy.process.add_noise(x_0, eps, t)
    in_noise = lambda v: (policy.process.to_eps(v, x_t, t) - eps).square().mean((1, 2, 3))
    error, ref = in_noise(e.prediction), in_noise(e.reference)
    d = (ref - error)[:3] - (ref - error)[3:]
    torch.testing.assert_close(flow.loss(e), -F.logsigmoid(20.0 * d), atol=1e-4, rtol=1e-3)
    constant = FlowDPO(policy=policy, beta=20.0)
    torch.testing.assert_close(constant.loss(e), DiffusionDPO(policy=policy, beta=20.0).loss(e))
