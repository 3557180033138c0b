"""Linear-DPO: DPO with a clipped linear weight, which reaches exactly 0, in place of the sigmoid weight."""

from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference
from lit_align.ranges import SHARE


class LinearDPO(Preference):
    """arXiv 2605.21123: omega (L_w - L_l), omega = clip(0.5 - beta D, eta, 1 - eta) without gradient: large for pairs
    in the wrong order, 0.5 at the start.

    Args:
        beta: coefficient of D in omega (0.2 times the paper's).
        eta: smallest weight of a pair, in [0, 0.5].
        reference_decay: the reference is the policy's exponential moving average with this decay, in [0, 1], updated
            after every optimizer step; none: the reference does not move.
    """

    ranges = {"reference_decay": SHARE}

    def __init__(self, beta: float = 100.0, eta: float = 0.0, reference_decay: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.eta, self.reference_decay = beta, eta, reference_decay
        self.moves_reference = reference_decay is not None

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.reference_decay is not None:
            self.policy.update_reference(self.reference_decay)

    def loss(self, e: Errors) -> Tensor:
        omega = (0.5 - self.beta * e.gap.detach()).clamp(self.eta, 1 - self.eta)
        return omega * (e.win - e.lose)
