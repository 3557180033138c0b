"""DiffusionNFT: samples above the group's mean attract the policy's prediction, samples below it repel it."""

from torch import Tensor

from lit_align.algorithms.forward_process.forward_process import ForwardProcess, NoisedBatch


class DiffusionNFT(ForwardProcess):
    """Zheng et al. 2025, arXiv 2509.16117, with the released code's weights. For samples of the old policy,

        v+ = (1 - beta) v_old + beta v_theta,    v- = (1 + beta) v_old - beta v_theta,
        L = (A_max / beta) [r L(x_0+) + (1 - r) L(x_0-)] + kl_weight mean |v_theta - v_ref|^2,
        r = A / (2 A_max) + 1/2,    L(x) = mean |x - x_0|^2 / sg(mean |x - x_0|),

    where x_0+ and x_0- are the estimates of x_0 from v+ and v-. The paper's v is a flow's velocity; here it is the
    policy's own prediction, and `process.to_x0` gives x_0: the same for a flow; for epsilon the weight is sigma / alpha
    instead of the flow's sigma, which emphasises noisy times (our port).

    Args:
        beta: distance of v+ and v- from v_old; 0.1 for several rewards and OCR.
        kl_weight: of the distance from the reference; 0: no reference.
    """

    uses_reference = True

    def __init__(self, beta: float = 1.0, kl_weight: float = 1e-4, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.kl_weight, self.uses_reference = beta, kl_weight, kl_weight > 0

    def loss(self, b: NoisedBatch) -> Tensor:
        beta, r = self.beta, b.advantage / (2 * self.max_advantage) + 0.5
        plus = self.distance((1 - beta) * b.old + beta * b.pred, b)
        minus = self.distance((1 + beta) * b.old - beta * b.pred, b)
        loss = self.max_advantage / beta * (r * plus + (1 - r) * minus)
        return loss + self.kl_weight * self.policy.error(b.pred, b.ref) if self.kl_weight else loss

    def distance(self, pred: Tensor, b: NoisedBatch) -> Tensor:
        """L of a prediction's estimate of x_0: (M,)."""
        return self.normalised_error(self.policy.process.to_x0(pred, b.x_t, b.t), b.x_0)
