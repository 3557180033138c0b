"""Flow-DPPO: Flow-GRPO with a bound on the exact KL to the old policy in place of the ratio's clipping."""

from torch import Tensor

from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.diffusion.transition import Gaussian
from lit_align.ranges import POSITIVE


class FlowDPPO(FlowGRPO):
    """arXiv 2606.11025 (as in the released code of UniRL): -A rho per step, 0 for a step whose KL(p_theta || p_old)
    has reached `max_kl` and which would move further away: rho > 1 with A > 0, or rho < 1 with A < 0.

    Logs `train/masked_fraction`, the fraction of such steps, and `train/kl_old`, the mean KL.

    Args:
        max_kl: bound on the KL of a step, in nats per dimension of the sample.
    """

    ranges = FlowGRPO.ranges | {"max_kl": POSITIVE}

    def __init__(self, max_kl: float = 1e-5, **kwargs):
        super().__init__(clip_range=1.0, **kwargs)  # no ratio is clipped
        self.max_kl = max_kl

    def surrogate(self, step: StepBatch) -> Tensor:
        rho = self.ratio(step)
        kl = step.gaussian.kl(Gaussian(step.old_mean, step.gaussian.std)).detach()
        masked = (kl >= self.max_kl) & ((rho - 1) * step.advantage > 0)
        self.log_mean("train/masked_fraction", masked.float().mean(), len(rho))
        self.log_mean("train/kl_old", kl.mean(), len(rho))
        return (-step.advantage * rho).masked_fill(masked, 0.0)
