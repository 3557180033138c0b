"""Linear-DPO: DPO with a clipped linear weight, which reaches exactly 0, in place of the sigmoid weight."""

from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class LinearDPO(Preference):
    """arXiv 2605.21123: omega (L_w - L_l), omega = clip(0.5 - beta D, eta, 1 - eta) without gradient: large for pairs
    in the wrong order, 0.5 at the start.

    Args:
        beta: coefficient of D in omega (0.2 times the paper's).
        eta: smallest weight of a pair, in [0, 0.5].
    """

    def __init__(self, beta: float = 100.0, eta: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.eta = beta, eta

    def loss(self, e: Errors) -> Tensor:
        omega = (0.5 - self.beta * e.gap.detach()).clamp(self.eta, 1 - self.eta)
        return omega * (e.win - e.lose)
